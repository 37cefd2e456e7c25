-- What is known of a message: `new`, `completed`, `failed`, `in_progress`, `held` (its attempts are used up) or
-- `waiting` (it has failed, and may be handled again); how many attempts count against the cap; and how the last
-- one that failed ended.
create or replace function :"schema".message_status(
  consumer text, message_id text, max_attempts integer default null,
  out status text, out used integer, out last_error text)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $pgonce$
#variable_conflict use_variable
declare
  seen constant :"schema".idempotency_keys := :"schema".look(consumer, message_id);
  answer constant text := :"schema".decide(seen, :"schema".clock(), null, 'retry', max_attempts);
begin
  status := case when answer = 'replay' then case seen.status when 2 then 'completed' else 'failed' end
                 when answer is not null then answer
                 when seen.status = 1 and seen.expires_at > :"schema".clock() then 'waiting'
                 else 'new' end;
  used := case when seen.status is not null then coalesce(seen.attempt, 1) - coalesce(seen.attempts_uncounted, 0) end;
  last_error := seen.last_error;
end
$pgonce$;
