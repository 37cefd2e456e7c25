-- Waits until nobody works on a key, side by side with others who only wait, or until wait_ms are over. Says nothing:
-- look again. For use outside of a transaction, so that the lock ends with it. Raises IK001 for a bad argument.
create or replace function :"schema".wait_for(scope text, key text, wait_ms bigint) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $pgonce$
begin
  perform :"schema".check_begin(scope, key, null, 1, null, wait_ms, 'retry', null);
  perform :"schema".bound_locks(clock_timestamp() + wait_ms * interval '1 millisecond');
  perform pg_advisory_xact_lock_shared(:"schema".lock_id(scope, key));
exception when lock_not_available then
  null;
end
$pgonce$;
