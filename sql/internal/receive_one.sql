-- Implements receive for a message that has a row and may be handled again. Returns `started` if it is recorded as
-- done, otherwise begin's answer.
create or replace function :"schema"._receive_one(
  p_consumer text, p_message_id text, p_retention_ms bigint, p_max_attempts integer)
returns text
language plpgsql volatile
as $pgonce$
declare
  v_begun record;
begin
  select b.answer, b.token into v_begun
    from :"schema"._begin(p_consumer, p_message_id, null, p_retention_ms, null, null, 0, 'retry', p_max_attempts,
                          false) b;
  if v_begun.answer = 'started' then
    perform :"schema"._finish(p_consumer, p_message_id, v_begun.token, 2::smallint, null, null, null, false, null);
  end if;
  return v_begun.answer;
end
$pgonce$;
