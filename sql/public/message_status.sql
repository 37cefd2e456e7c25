-- Returns what is known of a message: `new`, `completed`, `failed`, `in_progress`, `held` (attempts used up) or
-- `waiting` (failed, may be handled again); how many attempts count toward the cap; how the last failed attempt ended.
-- Raises IK003 for a corrupt row.
create or replace function :"schema".message_status(
  p_consumer text, p_message_id text, p_max_attempts integer default null,
  out status text, out used integer, out last_error text)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $pgonce$
declare
  v_at constant timestamptz := :"schema"._clock();
  v_row    :"schema".idempotency_keys;
  v_answer text;
begin
  select k.* into v_row from :"schema".idempotency_keys k
   where k.scope = p_consumer collate "C" and k.key = p_message_id collate "C";
  v_answer := :"schema"._decide(v_row.status, v_row.token, v_row.fingerprint, v_row.expires_at, v_row.lease_expires_at,
                                v_row.steps, v_row.attempt, v_row.attempts_uncounted,
                                v_at, null, null, 'retry', p_max_attempts);
  if v_answer = 'corrupt' then
    perform :"schema"._raise_corrupt();
  end if;
  status := case when v_answer = 'replay' then :"schema"._status_word(v_row.status)
                 when v_answer is not null then v_answer
                 when v_row.status = 1
                  and not :"schema"._is_forgotten(v_row.status, v_row.expires_at, v_row.lease_expires_at, v_at)
                 then 'waiting'
                 else 'new' end;
  used := case when v_row.status is not null then coalesce(v_row.attempt, 1) - coalesce(v_row.attempts_uncounted, 0) end;
  last_error := v_row.last_error;
end
$pgonce$;
comment on function :"schema".message_status is
  'Returns a message''s status (new, completed, failed, in_progress, held or waiting), attempts and last error.';
