-- Takes a claim from a holder that the operator knows to be gone. The key can be begun again at once, as after release.
-- p_seen: as `keys` showed it to the operator. Raises IK002 if the key has changed or has no claim; the error says
-- which. Does not wait for other transactions.
create or replace function :"schema".revoke_claim(p_scope text, p_key text, p_seen text) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $pgonce$
declare
  v_row record;
  v_at  timestamptz;
begin
  select l.* into v_row from :"schema"._lock_for_operator(p_scope, p_key, p_seen) l;
  if v_row.status <> 1 then
    raise exception 'the operation is finished' using errcode = 'IK002';
  elsif v_row.token is null then
    raise exception 'the claim was released before' using errcode = 'IK002';
  end if;
  v_at := :"schema"._clock();
  -- A recovery may continue the work, and earlier attempts no longer count. The lease of a lapsed claim ends later than
  -- before, so that the audit trail can tell this from a holder's release.
  update :"schema".idempotency_keys k
     set token = null, lease_expires_at = v_at, attempts_uncounted = coalesce(k.attempt, 1)
   where k.scope = p_scope collate "C" and k.key = p_key collate "C";
  if v_row.leased then
    perform :"schema"._list_unfinished(p_scope, p_key, v_at, null, null);
  end if;
end
$pgonce$;
comment on function :"schema".revoke_claim is
  'Takes a claim from a holder that is gone: the key can be begun again at once.';
