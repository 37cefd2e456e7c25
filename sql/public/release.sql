-- Gives a claim back unfinished, in the caller's transaction. The key can be begun again at once, with any fingerprint
-- unless steps are recorded. The row stays, without a token, so that the next attempt is counted and the old token
-- stays dead. p_last_error: how the attempt ended, for people; keeps 1000 characters. Raises IK002 if the claim is
-- lost. Outside a transaction use release_leased.
create or replace function :"schema".release(
  p_scope text, p_key text, p_token uuid, p_last_error text default null)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $pgonce$
declare
  v_at      timestamptz;
  v_leased  boolean;
  v_goes_on boolean;
begin
  perform :"schema"._lock_claim(p_scope, p_key, p_token);
  v_at := :"schema"._clock();
  update :"schema".idempotency_keys k
     set token = null, last_error = coalesce(left(p_last_error, 1000), k.last_error),
         lease_expires_at = least(k.lease_expires_at, v_at)
   where k.scope = p_scope collate "C" and k.key = p_key collate "C"
  returning k.leased, k.steps > 0 or k.attempts_uncounted is not null into v_leased, v_goes_on;
  if v_leased and v_goes_on then
    perform :"schema"._list_unfinished(p_scope, p_key, v_at, null, null);
  elsif v_leased then
    -- Nothing was done, so a recovery has nothing to continue.
    perform :"schema"._unlist_unfinished(p_scope, p_key);
  end if;
end
$pgonce$;
comment on function :"schema".release is
  'Gives a claim back unfinished, in the caller''s transaction: the key can be begun again at once.';
