-- Gives a claim back unfinished: the key can be begun again at once, with any fingerprint unless steps
-- are recorded. The row stays, without a token, so that the next attempt is counted and the old token
-- stays dead. What an operator lets run again (adopt) is listed as abandoned: nobody may be there to ask
-- for it. last_error: how the attempt ended, for people, of which
-- 1000 characters are kept. Raises IK002 when the claim is lost.
create or replace function :"schema".release(
  scope text, key text, token uuid, last_error text default null)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $pgonce$
#variable_conflict use_variable
declare
  leased boolean;
  adopted boolean;
begin
  perform :"schema".lock_claim(scope, key, token);
  update :"schema".idempotency_keys k
     set token = null, last_error = coalesce(left(last_error, 1000), k.last_error),
         lease_expires_at = least(k.lease_expires_at, :"schema".clock())
   where k.scope = scope collate "C" and k.key = key collate "C" and k.token = token and k.status = 1
  returning k.leased, k.attempts_uncounted = k.attempt into leased, adopted;
  if not found then
    perform :"schema".claim_lost();
  elsif leased and adopted then
    perform :"schema".enlist(scope, key, :"schema".clock());
  elsif leased then
    delete from :"schema".unfinished u where u.scope = scope collate "C" and u.key = key collate "C";
  end if;
end
$pgonce$;
