-- Takes a key's advisory lock, waiting for it until the deadline. Raises 55P03 when it was not to be
-- had; begin catches that in the block that it calls this from.
create or replace function :"schema".take_lock(lock_id bigint, deadline timestamptz) returns void
language plpgsql volatile
as $pgonce$
#variable_conflict use_variable
declare
  outer_timeout constant text := current_setting('lock_timeout');
begin
  -- Trying costs no queue and no row version.
  if pg_try_advisory_xact_lock(lock_id) then
    return;
  elsif deadline <= clock_timestamp() then
    raise exception 'the key is being worked on' using errcode = '55P03';
  end if;
  perform :"schema".bound_locks(deadline);
  perform pg_advisory_xact_lock(lock_id);
  perform set_config('lock_timeout', outer_timeout, true);
end
$pgonce$;
