-- Called after 53200 (out of memory or lock table). Raises IK005 if this transaction's own locks are the cause: the
-- same call would fail again. Each begun key keeps one lock until the transaction ends. v_room: about how many locks
-- fit, for all sessions together.
create or replace function :"schema"._check_locks() returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $pgonce$
declare
  v_own  constant bigint := (select count(*) from pg_lock_status() l where l.pid = pg_backend_pid());
  v_room constant bigint := current_setting('max_locks_per_transaction')::bigint
    * (current_setting('max_connections')::bigint + current_setting('max_prepared_transactions')::bigint);
begin
  if v_own >= v_room / 2 then
    raise exception 'this transaction has % locks, and the server has room for about % of all sessions; '
      'begin fewer keys in one transaction, or raise max_locks_per_transaction', v_own, v_room using errcode = 'IK005';
  end if;
end
$pgonce$;
