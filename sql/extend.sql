-- Pushes the lease of a claim to lease_ms from now; never pulls it in. A lapsed claim that nobody
-- has taken over is alive again. Raises IK002 when the claim is lost, IK001 for a lease of zero or
-- above the retention.
create or replace function :"schema".extend(scope text, key text, token uuid, lease_ms bigint) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $pgonce$
#variable_conflict use_variable
declare
  retention_ms bigint;
begin
  perform :"schema".lock_claim(scope, key, token);
  -- The row lock comes before the clock is read, or the new lease would start in the past.
  select ceil(extract(epoch from k.expires_at - k.created_at) * 1000) into retention_ms
    from :"schema".idempotency_keys k
   where k.scope = scope collate "C" and k.key = key collate "C" and k.token = token and k.status = 1
     for no key update;
  if not found then
    perform :"schema".claim_lost();
  end if;
  perform :"schema".check_range('lease_ms', lease_ms, 1, retention_ms);
  update :"schema".idempotency_keys k
     set lease_expires_at = greatest(k.lease_expires_at, :"schema".clock() + lease_ms * interval '1 millisecond')
   where k.scope = scope collate "C" and k.key = key collate "C";
end
$pgonce$;
