-- The steps that earlier attempts have recorded, in their order, for the holder of the claim. Raises IK002
-- when the claim is lost.
create or replace function :"schema".recorded_steps(scope text, key text, token uuid)
returns table (name text, definition bytea, output bytea)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $pgonce$
#variable_conflict use_variable
declare
  begun_at timestamptz;
begin
  -- Waits for a record that is still being committed: by this holder, if its connection broke. Under the
  -- stricter isolation levels locking the row then raises 40001 where an older snapshot would hide the record.
  perform :"schema".lock_claim(scope, key, token);
  select k.created_at into begun_at from :"schema".idempotency_keys k
   where k.scope = scope collate "C" and k.key = key collate "C" and k.token = token and k.status = 1
     for no key update;
  if not found then
    perform :"schema".claim_lost();
  end if;
  return query
    select s.name, s.definition, s.output from :"schema".steps s
     where s.scope = scope collate "C" and s.key = key collate "C" and s.begun_at = begun_at
     order by s.number;
end
$pgonce$;
