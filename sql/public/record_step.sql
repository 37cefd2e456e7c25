-- Records the output of a step of a claim's work, in the caller's transaction. Raises IK002 if the claim is lost; the
-- caller must then roll back the step's writes. Raises IK001 for a name already recorded, and for an output over 1 MiB.
-- p_definition: the fingerprint of the step's input.
create or replace function :"schema".record_step(
  p_scope text, p_key text, p_token uuid, p_name text, p_definition bytea, p_output bytea)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $pgonce$
declare
  v_begun_at timestamptz;
  v_number   integer;
begin
  perform :"schema"._check_name('step', p_name);
  perform :"schema"._check_fingerprint('definition', p_definition);
  if p_output is null then
    raise exception 'output is null; it takes bytes' using errcode = 'IK001';
  elsif octet_length(p_output) > 1048576 then -- a takeover loads them all
    raise exception 'output has % bytes; the limit is 1048576', octet_length(p_output) using errcode = 'IK001';
  end if;
  perform :"schema"._lock_claim(p_scope, p_key, p_token);
  update :"schema".idempotency_keys k
     set steps = coalesce(k.steps, 0) + 1
   where k.scope = p_scope collate "C" and k.key = p_key collate "C"
  returning k.created_at, k.steps into v_begun_at, v_number;
  loop
    insert into :"schema".steps (recorded_at, begun_at, number, scope, key, name, definition, output)
    values (:"schema"._clock(), v_begun_at, v_number, p_scope, p_key, p_name, p_definition, p_output)
    on conflict (scope, key, name) do nothing;
    exit when found;
    -- Left by an earlier life of the key, whose row was deleted by hand.
    delete from :"schema".steps s
     where s.scope = p_scope collate "C" and s.key = p_key collate "C" and s.name = p_name collate "C"
       and s.begun_at <> v_begun_at;
    if not found then
      raise exception 'a step of this name is recorded already' using errcode = 'IK001';
    end if;
  end loop;
end
$pgonce$;
comment on function :"schema".record_step is
  'Records the output of a step of a claim''s work, in the caller''s transaction.';
