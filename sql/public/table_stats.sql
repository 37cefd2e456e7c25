-- Returns counts for people and dashboards: of the rows that the caller may see; for an auditor, of all. The sizes are
-- those of the whole table. Reads the table once.
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
  if :"schema"._is_auditor() then
    select count(*) filter (where k.claim = 'live'),
           count(*) filter (where k.claim = 'lapsed'),
           count(*) filter (where k.claim = 'released'),
           count(*) filter (where k.status = 'completed'),
           count(*) filter (where k.status = 'failed'),
           count(*) filter (where k.overdue),
           floor(extract(epoch from v_at - min(k.created_at) filter (where k.status = 'in_progress')) * 1000)::bigint
      into live, lapsed, released, completed, failed, overdue, oldest_in_progress_ms
      from :"schema".audit_keys k;
  else
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
  end if;
  table_bytes := pg_table_size(':"schema".idempotency_keys');
  index_bytes := pg_indexes_size(':"schema".idempotency_keys');
end
$pgonce$;
comment on function :"schema".table_stats is
  'Counts keys by what they wait for. Reads the whole table once.';
