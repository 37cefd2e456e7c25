-- Counts an attempt to handle a message that has failed, in a transaction of its own, after the one that handled
-- it was rolled back: never in that one, which has recorded it as done. Waits up to wait_ms for that one to be
-- gone. The claim is given up at once: the next attempt takes it over, until max_attempts are used up. Nothing is
-- counted where begin gives no claim. Answers what message_status does, afterwards.
-- error: how the attempt ended, for people, of which 1000 characters are kept.
create or replace function :"schema".count_attempt(
  consumer     text,
  message_id   text,
  retention_ms bigint  default 604800000,
  wait_ms      bigint  default 0,
  max_attempts integer default null,
  error        text    default null,
  out status text, out used integer, out last_error text)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $pgonce$
#variable_conflict use_variable
declare
  outer_timeout constant text := current_setting('lock_timeout');
  begun record;
begin
  if :"schema".fits_begin(consumer, message_id, null, retention_ms, null, wait_ms, 'retry', max_attempts) is not true then
    perform :"schema".check_begin(consumer, message_id, null, retention_ms, null, wait_ms, 'retry', max_attempts);
  end if;
  -- receive inserts without the key's advisory lock, so begin alone would wait for it without a bound.
  perform :"schema".bound_locks(clock_timestamp() + greatest(wait_ms, 10) * interval '1 millisecond');
  select b.answer, b.token into begun
    from :"schema".begin(consumer, message_id, null, retention_ms, wait_ms => wait_ms, max_attempts => max_attempts) b;
  if begun.answer = 'started' then
    perform :"schema".note(consumer, message_id, begun.token, null, error, true);
  end if;
  perform set_config('lock_timeout', outer_timeout, true);
  select s.status, s.used, s.last_error into status, used, last_error
    from :"schema".message_status(consumer, message_id, max_attempts) s;
exception when lock_not_available then
  status := 'in_progress';
end
$pgonce$;
