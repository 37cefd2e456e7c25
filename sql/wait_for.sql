-- Waits until nobody works on a key, side by side with others who only wait, or until wait_ms are over. Says nothing:
-- look again. Keeps neither lock nor setting, whatever transaction it is called in. Raises IK001 for a bad argument.
create or replace function :"schema".wait_for(scope text, key text, wait_ms bigint) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $pgonce$
#variable_conflict use_variable
begin
  if :"schema".fits_begin(scope, key, null, 1, null, wait_ms, 'retry', null) is not true then
    perform :"schema".check_begin(scope, key, null, 1, null, wait_ms, 'retry', null);
  end if;
  begin
    perform :"schema".bound_locks(clock_timestamp() + wait_ms * interval '1 millisecond');
    perform pg_advisory_xact_lock_shared(:"schema".lock_id(scope, key));
    raise exception 'give the lock back' using errcode = 'IK000';
  exception when lock_not_available or sqlstate 'IK000' then
    null;
  end;
end
$pgonce$;
