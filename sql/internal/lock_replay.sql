-- Locks the row of a replay, so that the caller's commit waits for a synchronous standby. False: the row has changed,
-- look again. Raises 55P03 if another transaction locks the row until the deadline.
create or replace function :"schema"._lock_replay(p_scope text, p_key text, p_token uuid, p_deadline timestamptz)
returns boolean
language plpgsql volatile
as $pgonce$
declare
  v_lock_timeout constant text := current_setting('lock_timeout');
  v_locked boolean;
begin
  perform :"schema"._bound_waits(p_deadline, 1);
  perform 1 from :"schema".idempotency_keys k
    where k.scope = p_scope collate "C" and k.key = p_key collate "C" and k.token is not distinct from p_token
    for key share;
  v_locked := found;
  perform set_config('lock_timeout', v_lock_timeout, true);
  return v_locked;
end
$pgonce$;
