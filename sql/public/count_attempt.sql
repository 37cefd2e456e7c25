-- Counts a failed attempt to handle a message, after the handling transaction was rolled back, and commits. Refused
-- inside a transaction (2D000): the handling transaction has recorded the message as done. Waits for that transaction
-- up to p_wait_ms. Counts nothing if begin gives no claim. Returns what message_status then returns. p_error: how the
-- attempt ended, for people; keeps 1000 characters.
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
  'Counts a failed attempt to handle a message, and commits.';
