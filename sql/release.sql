-- Gives a claim back unfinished: the key can be begun again at once, with any fingerprint.
-- The row stays, without a token, so that the next attempt is counted and the old token stays dead.
-- Raises IK002 when the claim is lost.
create or replace function :"schema".release(scope text, key text, token uuid) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $pgonce$
#variable_conflict use_variable
begin
  perform pg_advisory_xact_lock(:"schema".lock_id(scope, key));
  update :"schema".idempotency_keys k
     set token = null, lease_expires_at = least(k.lease_expires_at, :"schema".clock())
   where k.scope = scope and k.key = key and k.token = token and k.status = 1;
  if not found then
    raise exception 'the claim is lost: released, taken over, finished or forgotten' using errcode = 'IK002';
  end if;
end
$pgonce$;
