-- Asks which messages are new to a consumer, and records those as done in the caller's transaction: the record
-- commits with what the consumer writes, or vanishes with it. One row per message, in the order given:
--   new          handle it in this transaction
--   seen         it is done, here or in an earlier transaction; response_* hold what was stored, if anything
--   in_progress  another transaction is at it: come back
--   dead         its attempts are used up, or it has failed for good; last_error is for people
--
-- wait_ms: how long to wait for other transactions. max_attempts: how many failures count_attempt may have
-- counted before a message is dead; null: any number.
--
-- Each row is looked up by its key (lateral .. limit 1): while the table is new and has no statistics, a plain
-- join reads all rows of the consumer in every call.
-- Rows and locks: one statement inserts all that have no row, in the order of their ids, so that overlapping
-- batches queue and do not deadlock. No advisory locks: a batch would fill the server's lock table.
-- Raises IK001 (bad argument), IK003 (corrupt row); 40001 or 40P01 mean: run the transaction again.
create or replace function :"schema".receive(
  consumer     text,
  message_ids  text[],
  retention_ms bigint  default 604800000,
  wait_ms      bigint  default 0,
  max_attempts integer default null)
returns table (
  answer text, attempt integer, status text,
  response_code integer, response_headers bytea, response_body bytea, response_omitted boolean, last_error text)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $pgonce$
#variable_conflict use_variable
declare
  deadline   timestamptz;
  fresh      text[]; -- recorded as done by this call
  message_id text;
begin
  perform :"schema".check_receive(consumer, message_ids, retention_ms, wait_ms, max_attempts);
  -- At least a moment, because it also bounds the wait for a page at the end of the table.
  deadline := clock_timestamp() + greatest(wait_ms, 10) * interval '1 millisecond';
  fresh := :"schema".insert_received(consumer, message_ids, retention_ms, deadline);
  if fresh is null then
    -- Find out one by one which it was.
    fresh := '{}';
    for message_id in select distinct i.id collate "C" from unnest(message_ids) i(id) order by 1 loop
      fresh := fresh || :"schema".insert_received(consumer, array[message_id], retention_ms, deadline);
    end loop;
  end if;

  if cardinality(fresh) < cardinality(message_ids) then
    for message_id in
      select distinct i.id collate "C"
        from unnest(message_ids) i(id)
        left join unnest(fresh) f(id) on f.id = i.id
       cross join lateral (
          select k from :"schema".idempotency_keys k
           where k.scope = consumer collate "C" and k.key = i.id collate "C" limit 1) s(k)
       where f.id is null and :"schema".decide(s.k, :"schema".clock(), null, 'retry', max_attempts) is null
       order by 1
    loop
      if :"schema".receive_one(consumer, message_id, retention_ms, deadline, max_attempts) = 'started' then
        fresh := fresh || message_id;
      end if;
    end loop;
  end if;

  return query
  select case when f.id is not null and row_number() over (partition by i.id order by i.place) = 1 then 'new'
              else case :"schema".decide(s.k, :"schema".clock(), null, 'retry', max_attempts)
                     when 'replay' then case (s.k).status when 2 then 'seen' else 'dead' end
                     when 'held' then 'dead'
                     else 'in_progress' end -- its lease is live, or there is nothing to be seen of it yet
         end,
         case when (s.k).status is not null then coalesce((s.k).attempt, 1) end,
         case (s.k).status when 2 then 'completed' when 3 then 'failed' when 1 then 'in_progress' end,
         (s.k).response_code,
         -- Once for each message: they may be large.
         case when row_number() over (partition by i.id order by i.place) = 1 then (s.k).response_headers end,
         case when row_number() over (partition by i.id order by i.place) = 1 then (s.k).response_body end,
         (s.k).response_omitted, (s.k).last_error
    from unnest(message_ids) with ordinality i(id, place)
    left join unnest(fresh) f(id) on f.id = i.id
    left join lateral (
      select k from :"schema".idempotency_keys k
       where k.scope = consumer collate "C" and k.key = i.id collate "C" limit 1) s(k) on true
   order by i.place;
end
$pgonce$;
