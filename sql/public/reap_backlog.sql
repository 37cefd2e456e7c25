-- Returns how many forgotten keys the reaper has not deleted yet, counted up to p_count_max so that a huge backlog
-- stays cheap to report, and how long the oldest has been overdue.
create or replace function :"schema".reap_backlog(
  p_count_max integer default 100000,
  out backlog bigint,
  out oldest_ms bigint)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
-- Reads the index up to p_count_max, whatever the statistics say.
set enable_sort = off
set enable_seqscan = off
set jit = off
as $pgonce$
declare
  v_at constant timestamptz := :"schema"._clock();
begin
  select count(o.expires_at), floor(extract(epoch from v_at - min(o.expires_at)) * 1000)::bigint
    into backlog, oldest_ms
    from (
      select k.expires_at
        from :"schema".idempotency_keys k
       where :"schema"._is_forgotten(k.status, k.expires_at, k.lease_expires_at, v_at)
         and not :"schema"._is_corrupt(k.status, k.expires_at, k.lease_expires_at)
       order by k.expires_at
       limit p_count_max) o;
end
$pgonce$;
comment on function :"schema".reap_backlog is
  'Returns how many forgotten keys the reaper has not deleted yet, and how long the oldest has been overdue.';
