-- Counts an attempt to handle a message, in a transaction of its own, because the one that handled it is rolled
-- back, or may never come back. Waits up to wait_ms for that one to be gone: the server may not have noticed yet
-- that its consumer was killed. The claim is given up at once: the next one takes it over, as an attempt more,
-- until max_attempts are used up.
-- Answers what begin does, and `completed` or `failed` in place of `replay`; `started` means counted, and `used` says how many attempts count against a cap now.
-- error: how the attempt ended, for people, of which 1000 characters are kept.
create or replace function :"schema".count_attempt(
  consumer     text,
  message_id   text,
  retention_ms bigint  default 604800000,
  wait_ms      bigint  default 0,
  max_attempts integer default null,
  error        text    default null,
  out answer text, out token uuid, out used integer, out last_error text)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $pgonce$
#variable_conflict use_variable
begin
  select coalesce(b.status, b.answer), b.token into answer, token
    from :"schema".begin(consumer, message_id, null, retention_ms,
                            wait_ms => wait_ms, max_attempts => max_attempts) b;
  if answer = 'started' then
    perform :"schema".note(consumer, message_id, token, null, error, true);
  end if;
  select k.attempt - k.attempts_uncounted, k.last_error into used, last_error from :"schema".idempotency_keys k
   where k.scope = consumer collate "C" and k.key = message_id collate "C";
end
$pgonce$;
