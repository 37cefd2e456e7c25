-- Gives an operator the claim on a key without a live holder, and returns its token. The claim lapsed, was released, or
-- was a transactional one committed without complete. Use the token with complete, fail or release in the same
-- transaction. The last holder is fenced off. Earlier attempts no longer count toward a cap, so a release lets the key
-- run again. p_seen: as `keys` showed it to the operator. Raises IK002 if the key has changed, is finished, live or
-- forgotten; the error says which. Does not wait for other transactions.
create or replace function :"schema".take_over_claim(p_scope text, p_key text, p_seen text) returns uuid
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $pgonce$
declare
  v_row   record;
  v_at    timestamptz;
  v_token constant uuid := gen_random_uuid();
begin
  select l.* into v_row from :"schema"._lock_for_operator(p_scope, p_key, p_seen) l;
  v_at := :"schema"._clock();
  if v_row.status <> 1 then
    raise exception 'the operation is finished' using errcode = 'IK002';
  elsif v_row.leased and :"schema"._is_live(v_row.status, v_row.token, v_row.lease_expires_at, v_at) then
    raise exception 'the claim is live: its holder may be at work' using errcode = 'IK002';
  elsif :"schema"._is_forgotten(v_row.status, v_row.expires_at, v_row.lease_expires_at, v_at) then
    raise exception 'the key is forgotten: the next begin runs it anew' using errcode = 'IK002';
  end if;
  -- A leased claim lapses now, so that the audit trail can tell a takeover from a holder that gives up.
  update :"schema".idempotency_keys k
     set token = v_token, attempts_uncounted = coalesce(k.attempt, 1),
         lease_expires_at = case when k.leased then v_at else k.lease_expires_at end
   where k.scope = p_scope collate "C" and k.key = p_key collate "C";
  return v_token;
end
$pgonce$;
comment on function :"schema".take_over_claim is
  'Gives an operator the claim on a key without a live holder. Returns its token.';
