-- Returns the steps that earlier attempts recorded, in order, to the holder of the claim. Raises IK002 if the claim is
-- lost. Locks the claim's row, so call it in a separate transaction and end that.
create or replace function :"schema".recorded_steps(p_scope text, p_key text, p_token uuid)
returns table (name text, definition bytea, output bytea)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $pgonce$
begin
  -- Waits for a record still being committed: by this holder, if its connection broke. Above READ COMMITTED, locking
  -- the row raises 40001 where an older snapshot would hide the record.
  perform :"schema"._lock_claim(p_scope, p_key, p_token);
  return query
    select s.name, s.definition, s.output
      from :"schema".idempotency_keys k
      join :"schema".steps s on s.scope = k.scope and s.key = k.key and s.begun_at = k.created_at
     where k.scope = p_scope collate "C" and k.key = p_key collate "C"
     order by s.number;
end
$pgonce$;
comment on function :"schema".recorded_steps is
  'Returns the steps that earlier attempts recorded, to the holder of the claim.';
