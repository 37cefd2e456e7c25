-- Locks the row of a replay, so that the caller's commit waits for a synchronous standby. False: the row
-- has changed, look again. Raises 55P03 when it is locked otherwise until the deadline.
create or replace function :"schema".lock_replay(scope text, key text, token uuid, deadline timestamptz)
returns boolean
language plpgsql volatile
as $pgonce$
#variable_conflict use_variable
declare
  outer_timeout constant text := current_setting('lock_timeout');
  locked boolean;
begin
  perform :"schema".bound_locks(deadline);
  perform 1 from :"schema".idempotency_keys k
    where k.scope = scope collate "C" and k.key = key collate "C" and k.token is not distinct from token for key share;
  locked := found;
  perform set_config('lock_timeout', outer_timeout, true);
  return locked;
end
$pgonce$;
