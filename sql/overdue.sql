-- What the reaper still has to do: keys past their retention (counted up to count_max, so that a
-- huge backlog stays cheap to report) and for how long the oldest of them has been overdue.
create or replace function :"schema".overdue(
  count_max integer default 100000,
  out backlog bigint,
  out oldest_ms bigint)
language sql volatile
set search_path = pg_catalog, pg_temp
-- Along the index as far as count_max, whatever the statistics say.
set enable_sort = off
set enable_seqscan = off
set jit = off
as $pgonce$
  select count(o.expires_at), floor(extract(epoch from t.at - min(o.expires_at)) * 1000)::bigint
    from (select :"schema".clock() as at) t
    left join lateral (
      select k.expires_at
        from :"schema".idempotency_keys k
       where k.expires_at <= t.at and (k.status <> 1 or k.lease_expires_at <= t.at)
       order by k.expires_at
       limit count_max) o on true
   group by t.at
$pgonce$;
