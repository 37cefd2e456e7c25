-- The row of a key, or nulls. Raises IK003 when it holds what pgonce never writes. A function of its
-- own so that each look is a statement with a snapshot of its own.
create or replace function :"schema".look(scope text, key text) returns :"schema".idempotency_keys
language plpgsql volatile
as $pgonce$
#variable_conflict use_variable
declare
  seen :"schema".idempotency_keys;
begin
  select k.* into seen from :"schema".idempotency_keys k
   where k.scope = scope collate "C" and k.key = key collate "C";
  if seen.status not in (1, 2, 3) or not isfinite(seen.expires_at) or not isfinite(seen.lease_expires_at)
    or seen.status = 1 and seen.lease_expires_at is null then
    raise exception 'the stored row has a status or a time that pgonce never writes' using errcode = 'IK003';
  end if;
  return seen;
end
$pgonce$;
