-- Implements lapse_leased, and ends a counted attempt. Replaces the token, so that an extend that arrives late finds
-- the claim lost and does not revive it. p_leased: the caller lists the key as unfinished.
create or replace function :"schema"._lapse(
  p_scope text, p_key text, p_token uuid, p_last_error text, p_at_once boolean,
  p_counts boolean default true, p_leased boolean default null)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $pgonce$
declare
  v_token constant uuid := gen_random_uuid();
  v_at timestamptz;
begin
  perform :"schema"._lock_claim(p_scope, p_key, p_token);
  v_at := :"schema"._clock();
  update :"schema".idempotency_keys k
     set token = v_token, leased = coalesce(p_leased, k.leased),
         lease_expires_at = case when p_at_once then least(k.lease_expires_at, v_at) else k.lease_expires_at end,
         last_error = coalesce(left(p_last_error, 1000), k.last_error),
         attempts_uncounted = case when p_counts then k.attempts_uncounted else coalesce(k.attempts_uncounted, 0) + 1 end
   where k.scope = p_scope collate "C" and k.key = p_key collate "C";
  if p_at_once then
    perform :"schema"._hasten_unfinished(p_scope, p_key, v_at);
  end if;
end
$pgonce$;
