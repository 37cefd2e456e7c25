-- Counts an attempt to handle a message that has failed, after the transaction that handled it was rolled back, and
-- commits. Refused inside a transaction (2D000): in the one that handles it, the message is recorded as done. Waits up
-- to p_wait_ms for that one to end. Counts nothing where begin gives no claim. Answers what message_status does,
-- afterwards. p_error: how the attempt ended, for people, of which 1000 characters are kept.
create or replace procedure :"schema".count_attempt(
  p_consumer     text,
  p_message_id   text,
  p_retention_ms bigint  default 604800000,
  p_wait_ms      bigint  default 0,
  p_max_attempts integer default null,
  p_error        text    default null,
  inout status text default null, inout used integer default null, inout last_error text default null)
language plpgsql
as $pgonce$
begin
  commit;
  set transaction isolation level read committed;
  select c.status, c.used, c.last_error into status, used, last_error
    from :"schema"._count_attempt(p_consumer, p_message_id, p_retention_ms, p_wait_ms, p_max_attempts, p_error) c;
  commit;
end
$pgonce$;
comment on procedure :"schema".count_attempt is
  'Counts an attempt to handle a message that has failed, and commits.';
