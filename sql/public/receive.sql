-- Records the new messages of a batch as done in the caller's transaction: the record commits or rolls back with the
-- consumer's writes. Returns one row per message, in the given order:
--   new          handle it in this transaction
--   seen         done, here or in an earlier transaction; response_* is the stored response, if any
--   in_progress  another caller is handling it: try again later
--   dead         attempts used up, failed for good, or its row is corrupt; last_error is for people
--
-- p_wait_ms: how long to wait for other transactions, for all messages together; about a second more if many are
-- blocked. A transaction that has written does not wait: receive first. p_max_attempts: after how many failures,
-- counted by count_attempt, a message is dead; null: never. Up to 1000 messages.
--
-- Rows and locks: one statement inserts all messages without a row, in the order of their ids, so that overlapping
-- batches queue and do not deadlock. New messages take no advisory locks: a batch would fill the server's lock table.
-- Only the inbox may use the scope of a consumer. Raises IK001 (bad argument). On 40001 or 40P01, run the transaction
-- again.
--
-- Looks each row up by its key (lateral .. limit 1): a plain join reads all rows of the consumer in every call while
-- the table is new and has no statistics.
create or replace function :"schema".receive(
  p_consumer     text,
  p_message_ids  text[],
  p_retention_ms bigint  default 604800000,
  p_wait_ms      bigint  default 0,
  p_max_attempts integer default null)
returns table (
  answer text, attempt integer, status text,
  response_code integer, response_headers bytea, response_body bytea, response_omitted boolean, last_error text)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $pgonce$
declare
  v_deadline   timestamptz;
  v_at         timestamptz;
  v_fresh      text[]; -- recorded as done by this call
  v_message_id text;
begin
  perform :"schema"._check_receive(p_consumer, p_message_ids, p_retention_ms, p_wait_ms, p_max_attempts);
  -- As in begin: a transaction that has written does not wait, because it could deadlock.
  v_deadline := clock_timestamp()
    + case when pg_current_xact_id_if_assigned() is null then p_wait_ms else 0 end * interval '1 millisecond';
  v_fresh := :"schema"._receive_new(p_consumer, array(select distinct m collate "C" from unnest(p_message_ids) m order by 1),
                                    p_retention_ms, v_deadline);

  if cardinality(v_fresh) < cardinality(p_message_ids) then
    v_at := :"schema"._clock();
    for v_message_id in
      select distinct i.id collate "C"
        from unnest(p_message_ids) i(id)
        left join unnest(v_fresh) f(id) on f.id = i.id
       cross join lateral (
          select k.* from :"schema".idempotency_keys k
           where k.scope = p_consumer collate "C" and k.key = i.id collate "C" limit 1) s
       where f.id is null
         and :"schema"._decide(s.status, s.token, s.fingerprint, s.expires_at, s.lease_expires_at, s.steps, s.attempt,
                               s.attempts_uncounted, v_at, null, null, 'retry', p_max_attempts) is null
       order by 1
    loop
      exit when :"schema"._is_over(v_deadline);
      if :"schema"._receive_one(p_consumer, v_message_id, p_retention_ms, p_max_attempts) = 'started' then
        v_fresh := v_fresh || v_message_id;
      end if;
    end loop;
  end if;

  v_at := :"schema"._clock();
  return query
  select case when f.id is not null and row_number() over (partition by i.id order by i.place) = 1 then 'new'
              else case d.answer
                     when 'replay' then case s.status when 2 then 'seen' else 'dead' end
                     when 'held' then 'dead'
                     when 'corrupt' then 'dead'
                     else 'in_progress' end -- its lease is live, or it is another transaction's
         end,
         case when s.status is not null then coalesce(s.attempt, 1) end,
         case when s.status is not null then :"schema"._status_word(s.status) end,
         s.response_code,
         -- Once per message: they may be large.
         case when row_number() over (partition by i.id order by i.place) = 1 then s.response_headers end,
         case when row_number() over (partition by i.id order by i.place) = 1 then s.response_body end,
         s.response_omitted,
         case when d.answer = 'corrupt' then 'the stored row has a status or a time that pgonce never writes'
              else s.last_error end
    from unnest(p_message_ids) with ordinality i(id, place)
    left join unnest(v_fresh) f(id) on f.id = i.id
    left join lateral (
      select k.* from :"schema".idempotency_keys k
       where k.scope = p_consumer collate "C" and k.key = i.id collate "C" limit 1) s on true
   cross join lateral (
      select :"schema"._decide(s.status, s.token, s.fingerprint, s.expires_at, s.lease_expires_at, s.steps, s.attempt,
                               s.attempts_uncounted, v_at, null, null, 'retry', p_max_attempts) as answer) d
   order by i.place;
end
$pgonce$;
comment on function :"schema".receive is
  'Records the new messages of a batch as done, in the caller''s transaction. Answers new, seen, in_progress or dead.';
