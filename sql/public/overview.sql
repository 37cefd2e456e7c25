-- Returns what an operator wants to know first, without reading the table of keys: counts of unfinished leased keys and
-- failed messages by state (see unfinished_keys), of live claims by the age of their operation, of keys that the reaper
-- has not deleted yet; sizes. Counts stop at p_count_max (1 to 100000): unfinished_capped says that there are more
-- unfinished keys than were read, and overdue = p_count_max that there may be more overdue ones. live_by_age: under a
-- minute, ten minutes, an hour, a day, and older. keys_estimate: from the server's statistics; null if there are none.
create or replace function :"schema".overview(
  p_count_max integer default 10000,
  out live bigint, out abandoned bigint, out held bigint, out waiting_messages bigint, out dead_messages bigint,
  out unfinished_capped boolean, out live_by_age bigint[], out oldest_live_ms bigint, out longest_abandoned_ms bigint,
  out overdue bigint, out oldest_overdue_ms bigint, out keys_estimate bigint,
  out table_bytes bigint, out index_bytes bigint, out steps_bytes bigint, out unfinished_bytes bigint,
  out dead_rows bigint, out vacuumed_at timestamptz)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set jit = off
as $pgonce$
declare
  v_at constant timestamptz := :"schema"._clock();
begin
  perform :"schema"._check_range('count_max', p_count_max, 1, 100000);
  select count(*) filter (where u.state = 'live'),
         count(*) filter (where u.state = 'abandoned' and not u.is_message),
         count(*) filter (where u.state = 'held' and not u.is_message),
         count(*) filter (where u.state = 'abandoned' and u.is_message),
         count(*) filter (where u.state = 'held' and u.is_message),
         count(*) > p_count_max,
         array[count(*) filter (where u.state = 'live' and a.age < interval '1 minute'),
               count(*) filter (where u.state = 'live' and a.age >= interval '1 minute' and a.age < interval '10 minutes'),
               count(*) filter (where u.state = 'live' and a.age >= interval '10 minutes' and a.age < interval '1 hour'),
               count(*) filter (where u.state = 'live' and a.age >= interval '1 hour' and a.age < interval '1 day'),
               count(*) filter (where u.state = 'live' and a.age >= interval '1 day')],
         floor(extract(epoch from max(a.age) filter (where u.state = 'live')) * 1000)::bigint,
         floor(extract(epoch from max(v_at - u.lease_expires_at)
                                    filter (where u.state = 'abandoned' and not u.is_message)) * 1000)::bigint
    into live, abandoned, held, waiting_messages, dead_messages, unfinished_capped, live_by_age, oldest_live_ms,
         longest_abandoned_ms
    from :"schema"._read_unfinished(null, p_count_max + 1) u
   cross join lateral (select v_at - u.created_at as age) a;
  select b.backlog, b.oldest_ms into overdue, oldest_overdue_ms from :"schema".reap_backlog(p_count_max) b;
  select nullif(c.reltuples, -1)::bigint into keys_estimate
    from pg_class c where c.oid = ':"schema".idempotency_keys'::regclass;
  table_bytes := pg_table_size(':"schema".idempotency_keys');
  index_bytes := pg_indexes_size(':"schema".idempotency_keys');
  steps_bytes := pg_total_relation_size(':"schema".steps');
  unfinished_bytes := pg_total_relation_size(':"schema".unfinished');
  select s.n_dead_tup, greatest(s.last_vacuum, s.last_autovacuum) into dead_rows, vacuumed_at
    from pg_stat_user_tables s where s.relid = ':"schema".idempotency_keys'::regclass;
end
$pgonce$;
comment on function :"schema".overview is
  'Returns capped counts of unfinished and overdue keys, and sizes. Does not read the table of keys.';

-- Returns whether this session can write: false on a standby and in a read-only transaction. Volatile, so that proxies
-- ask the primary.
create or replace function :"schema".takes_writes() returns boolean
language sql volatile
set search_path = pg_catalog, pg_temp
as $pgonce$
  select not pg_is_in_recovery() and current_setting('transaction_read_only') = 'off'
$pgonce$;
comment on function :"schema".takes_writes is
  'Returns whether this session can write: false on a standby and in a read-only transaction.';
