-- Counts an attempt to handle a message that has failed, in a transaction of its own, because the one that handled
-- it was rolled back. Waits up to wait_ms for that one to be gone. The claim is given up at once: the next attempt
-- takes it over, until max_attempts are used up. Nothing is counted where begin gives no claim. Answers what
-- message_status does, afterwards. error: how the attempt ended, for people, of which 1000 characters are kept.
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
  begun record;
begin
  select b.answer, b.token into begun
    from :"schema".begin(consumer, message_id, null, retention_ms, wait_ms => wait_ms, max_attempts => max_attempts) b;
  if begun.answer = 'started' then
    perform :"schema".note(consumer, message_id, begun.token, null, error, true);
  end if;
  select s.status, s.used, s.last_error into status, used, last_error
    from :"schema".message_status(consumer, message_id, max_attempts) s;
end
$pgonce$;
