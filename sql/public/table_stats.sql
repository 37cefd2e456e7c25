-- Counts for people and dashboards. Reads the whole table once.
create or replace function :"schema".table_stats(
  out live bigint, out lapsed bigint, out released bigint, out completed bigint, out failed bigint,
  out overdue bigint, out oldest_in_progress_ms bigint,
  out table_bytes bigint, out index_bytes bigint)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $pgonce$
declare
  v_at constant timestamptz := :"schema"._clock();
begin
  select count(*) filter (where c.claim = 'live'),
         count(*) filter (where c.claim = 'lapsed'),
         count(*) filter (where c.claim = 'released'),
         count(*) filter (where k.status = 2),
         count(*) filter (where k.status = 3),
         count(*) filter (where :"schema"._is_forgotten(k.status, k.expires_at, k.lease_expires_at, v_at)
                            and not :"schema"._is_corrupt(k.status, k.expires_at, k.lease_expires_at)),
         floor(extract(epoch from v_at - min(k.created_at) filter (where k.status = 1)) * 1000)::bigint
    into live, lapsed, released, completed, failed, overdue, oldest_in_progress_ms
    from :"schema".idempotency_keys k
   cross join lateral (
     select :"schema"._claim_word(k.status, k.token, k.lease_expires_at, v_at) as claim) c;
  table_bytes := pg_table_size(':"schema".idempotency_keys');
  index_bytes := pg_indexes_size(':"schema".idempotency_keys');
end
$pgonce$;
comment on function :"schema".table_stats is
  'Counts keys by what they wait for. Reads the whole table once.';
