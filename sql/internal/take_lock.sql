-- Takes a key's advisory lock, waiting until the deadline. Raises 55P03 if another transaction keeps it until then. The
-- calling block must catch 55P03: its rollback restores lock_timeout.
create or replace function :"schema"._take_lock(p_lock_id bigint, p_deadline timestamptz) returns void
language plpgsql volatile
as $pgonce$
declare
  v_lock_timeout constant text := current_setting('lock_timeout');
begin
  -- Trying first avoids the queue.
  if pg_try_advisory_xact_lock(p_lock_id) then
    return;
  elsif p_deadline <= clock_timestamp() then
    raise exception 'the key is being worked on' using errcode = '55P03';
  end if;
  perform :"schema"._bound_waits(p_deadline, 1);
  perform pg_advisory_xact_lock(p_lock_id);
  perform set_config('lock_timeout', v_lock_timeout, true);
end
$pgonce$;
