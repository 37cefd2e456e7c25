-- Counts for people and dashboards. Reads the whole table once.
create or replace function :"schema".stats(
  out live bigint, out lapsed bigint, out released bigint, out completed bigint, out failed bigint,
  out overdue bigint, out oldest_in_progress_ms bigint,
  out table_bytes bigint, out index_bytes bigint)
language sql volatile
set search_path = pg_catalog, pg_temp
as $pgonce$
  select count(*) filter (where v.claim = 'live'),
         count(*) filter (where v.claim = 'lapsed'),
         count(*) filter (where v.claim = 'released'),
         count(*) filter (where v.status = 'completed'),
         count(*) filter (where v.status = 'failed'),
         count(*) filter (where v.expires_at <= t.at),
         floor(extract(epoch from t.at - min(v.created_at) filter (where v.status = 'in_progress')) * 1000)::bigint,
         pg_table_size(':"schema".idempotency_keys'),
         pg_indexes_size(':"schema".idempotency_keys')
    from (select :"schema".clock() as at) t
    left join :"schema".keys v on true
   group by t.at
$pgonce$;
