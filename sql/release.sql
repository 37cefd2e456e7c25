-- Gives a claim back unfinished: the key can be begun again at once, with any fingerprint unless steps
-- are recorded. The row stays, without a token, so that the next attempt is counted and the old token
-- stays dead. A leased key is still unfinished, and abandoned from now on. last_error: how the attempt ended,
-- for people, of which 1000 characters are kept. Raises IK002 when the claim is lost.
create or replace function :"schema".release(
  scope text, key text, token uuid, last_error text default null)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $pgonce$
#variable_conflict use_variable
declare
  leased boolean;
begin
  perform :"schema".lock_claim(scope, key, token);
  update :"schema".idempotency_keys k
     set token = null, last_error = coalesce(left(last_error, 1000), k.last_error),
         lease_expires_at = least(k.lease_expires_at, :"schema".clock())
   where k.scope = scope collate "C" and k.key = key collate "C" and k.token = token and k.status = 1
  returning k.leased into leased;
  if not found then
    perform :"schema".claim_lost();
  elsif leased then
    perform :"schema".enlist(scope, key, :"schema".clock());
  end if;
end
$pgonce$;
