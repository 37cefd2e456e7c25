-- Takes a key's advisory lock, waiting for it until the deadline. Raises 55P03 when another transaction kept it
-- until then; the caller catches that in the block that it calls this from.
create or replace function :"schema"._take_lock(p_lock_id bigint, p_deadline timestamptz) returns void
language plpgsql volatile
as $pgonce$
declare
  v_lock_timeout constant text := current_setting('lock_timeout');
begin
  -- Trying costs no queue and no row version.
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
