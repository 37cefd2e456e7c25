-- Takes a key's advisory lock, waiting for it until the deadline. Raises 55P03 when it was not to be
-- had; begin catches that in the block that it calls this from. shared: with others who only ask, so that
-- they wait for whoever works on the key but not for each other.
create or replace function :"schema".take_lock(lock_id bigint, deadline timestamptz, shared boolean) returns void
language plpgsql volatile
as $pgonce$
#variable_conflict use_variable
declare
  outer_timeout constant text := current_setting('lock_timeout');
begin
  -- Trying costs no queue and no row version.
  if (case when shared then pg_try_advisory_xact_lock_shared(lock_id) else pg_try_advisory_xact_lock(lock_id) end) then
    return;
  elsif deadline <= clock_timestamp() then
    raise exception 'the key is being worked on' using errcode = '55P03';
  end if;
  perform :"schema".bound_locks(deadline);
  if shared then
    perform pg_advisory_xact_lock_shared(lock_id);
  else
    perform pg_advisory_xact_lock(lock_id);
  end if;
  perform set_config('lock_timeout', outer_timeout, true);
end
$pgonce$;
