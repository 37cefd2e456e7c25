-- Implements count_attempt. The claim lapses at once, so the next attempt takes it over until the attempts are used up.
-- The message is listed as unfinished for operators only: no recovery picks it, because its broker delivers it again.
create or replace function :"schema"._count_attempt(
  p_consumer text, p_message_id text, p_retention_ms bigint, p_wait_ms bigint, p_max_attempts integer, p_error text,
  out status text, out used integer, out last_error text)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $pgonce$
declare
  v_begun record;
begin
  select b.answer, b.token into v_begun
    from :"schema"._begin(p_consumer, p_message_id, null, p_retention_ms, null, null, p_wait_ms, 'retry',
                          p_max_attempts, false) b;
  if v_begun.answer = 'started' then
    perform :"schema"._lapse(p_consumer, p_message_id, v_begun.token, p_error, true, true, true);
    perform :"schema"._list_unfinished(p_consumer, p_message_id, 'infinity', 'retry', p_max_attempts);
  end if;
  select s.status, s.used, s.last_error into status, used, last_error
    from :"schema".message_status(p_consumer, p_message_id, p_max_attempts) s;
  if status = 'new' and v_begun.answer = 'in_progress' then
    status := 'in_progress'; -- in another open transaction, invisible here
  end if;
end
$pgonce$;
