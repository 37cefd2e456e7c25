-- Records the output of a step of a claim's work, fenced: raises IK002 when the claim is lost, and then
-- nothing of the step's own writes in this transaction must be committed. Raises IK001 for a name that is
-- recorded already, and for an output of more than 1 MiB.
create or replace function :"schema".record_step(
  scope text, key text, token uuid, name text, definition bytea, output bytea)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $pgonce$
#variable_conflict use_variable
declare
  begun_at timestamptz;
  number integer;
begin
  perform :"schema".check_name('step', name);
  if octet_length(definition) <> 36 then
    raise exception 'definition has % bytes; it takes the 36 that %.fingerprint() makes',
      octet_length(definition), :'schema' using errcode = 'IK001';
  elsif output is null then
    raise exception 'output is null; it takes bytes' using errcode = 'IK001';
  elsif octet_length(output) > 1048576 then -- whoever takes over loads them all
    raise exception 'output has % bytes; the limit is 1048576', octet_length(output) using errcode = 'IK001';
  end if;
  perform :"schema".lock_claim(scope, key, token);
  update :"schema".idempotency_keys k
     set steps = coalesce(k.steps, 0) + 1
   where k.scope = scope collate "C" and k.key = key collate "C" and k.token = token and k.status = 1
  returning k.created_at, k.steps into begun_at, number;
  if not found then
    perform :"schema".claim_lost();
  end if;
  loop
    insert into :"schema".steps (recorded_at, begun_at, number, scope, key, name, definition, output)
    values (:"schema".clock(), begun_at, number, scope, key, name, definition, output)
    on conflict on constraint steps_pkey do nothing;
    exit when found;
    -- Left behind by a former life of the key, whose row was deleted by hand.
    delete from :"schema".steps s
     where s.scope = scope collate "C" and s.key = key collate "C" and s.name = name collate "C"
       and s.begun_at <> begun_at;
    if not found then
      raise exception 'a step of this name is recorded already' using errcode = 'IK001';
    end if;
  end loop;
end
$pgonce$;
