-- receive for a message that has a row and may be handled again: `started` when it is recorded as done, or what
-- begin answers.
create or replace function :"schema".receive_one(
  consumer text, message_id text, retention_ms bigint, deadline timestamptz, max_attempts integer)
returns text
language plpgsql volatile
as $pgonce$
#variable_conflict use_variable
declare
  outer_timeout constant text := current_setting('lock_timeout');
  begun record;
begin
  -- Should the row be gone by now, begin's own insert is bounded too.
  perform :"schema".bound_locks(deadline);
  select b.answer, b.token into begun
    from :"schema".begin(consumer, message_id, null, retention_ms, max_attempts => max_attempts) b;
  perform set_config('lock_timeout', outer_timeout, true);
  if begun.answer = 'started' then
    perform :"schema".complete(consumer, message_id, begun.token);
  end if;
  return begun.answer;
exception when lock_not_available then
  return 'in_progress';
end
$pgonce$;
