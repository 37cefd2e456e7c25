-- Locks a key for take_over_claim, revoke_claim or redrive_message, and returns its row. Raises IK002 if the key is
-- unknown, being worked on, or not as the operator saw it (the message says which); IK003 for a corrupt row. Does not
-- wait for other transactions.
create or replace function :"schema"._lock_for_operator(
  p_scope text, p_key text, p_seen text,
  out status smallint, out token uuid, out attempt integer, out steps integer, out leased boolean, out fingerprint bytea,
  out expires_at timestamptz, out lease_expires_at timestamptz)
language plpgsql volatile
as $pgonce$
declare
  v_seen text;
begin
  if not pg_try_advisory_xact_lock(:"schema"._lock_id(p_scope, p_key)) then
    raise exception 'the key is being worked on' using errcode = 'IK002';
  end if;
  begin
    select k.status, k.token, k.attempt, k.steps, k.leased, k.fingerprint, k.expires_at, k.lease_expires_at,
           :"schema"._seen(k.status, k.token, k.attempt, k.created_at)
      into status, token, attempt, steps, leased, fingerprint, expires_at, lease_expires_at, v_seen
      from :"schema".idempotency_keys k
     where k.scope = p_scope collate "C" and k.key = p_key collate "C"
       for no key update nowait;
    -- A recovery briefly locks this row.
    perform 1 from :"schema".unfinished u
      where u.scope = p_scope collate "C" and u.key = p_key collate "C" for update nowait;
  exception when lock_not_available then
    raise exception 'the key is being worked on' using errcode = 'IK002';
  end;
  if status is null then
    raise exception 'the key is unknown' using errcode = 'IK002';
  elsif v_seen is distinct from p_seen then
    raise exception 'the key has changed since it was looked at' using errcode = 'IK002';
  elsif :"schema"._is_corrupt(status, expires_at, lease_expires_at) then
    perform :"schema"._raise_corrupt();
  end if;
end
$pgonce$;
