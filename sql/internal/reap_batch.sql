-- Deletes one batch: up to p_batch_size forgotten keys and all that belongs to them, oldest first. Skips rows that
-- another transaction has locked, so any number of reapers may run. Starts at the watermark (microseconds since 1970):
-- before it, an old snapshot keeps index entries of deleted rows, which every batch would read again. Skipped rows wait
-- for the next pass.
create or replace function :"schema"._reap_batch(
  p_batch_size integer, inout watermark bigint, out deleted bigint)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
-- Reads the index up to p_batch_size, then deletes by ctid, whatever the statistics say: never the whole table.
set enable_sort = off
set enable_seqscan = off
set jit = off
as $pgonce$
declare
  v_at constant timestamptz := :"schema"._clock();
  v_from constant timestamptz :=
    coalesce(timestamptz 'epoch' + watermark * interval '1 microsecond', '-infinity');
  v_rows   tid[];
  v_scopes text[]; -- of the few keys with more than their row
  v_keys   text[];
begin
  perform :"schema"._check_range('batch_size', p_batch_size, 1, 100000);
  select array_agg(o.ctid),
         coalesce((extract(epoch from max(o.expires_at)) * 1000000)::bigint, watermark),
         array_agg(o.scope) filter (where o.more), array_agg(o.key) filter (where o.more)
    into v_rows, watermark, v_scopes, v_keys
    from (
      select k.ctid, k.expires_at, k.scope, k.key, k.steps > 0 or k.leased and k.status = 1 as more
        from :"schema".idempotency_keys k
       where k.expires_at >= v_from
         and :"schema"._is_forgotten(k.status, k.expires_at, k.lease_expires_at, v_at)
         and not :"schema"._is_corrupt(k.status, k.expires_at, k.lease_expires_at)
       order by k.expires_at
       limit p_batch_size
         for update skip locked) o;
  -- By ctid: six times faster than by key. Repeats the condition, because a ctid names one row per partition if the
  -- owner has partitioned the table. A separate statement: returning what it deletes costs a fifth more time.
  delete from :"schema".idempotency_keys k
   where k.ctid = any (v_rows)
     -- greatest(.., null) is the time itself, and keeps the planner from using its index.
     and :"schema"._is_forgotten(k.status, greatest(k.expires_at, null), k.lease_expires_at, v_at)
     and not :"schema"._is_corrupt(k.status, k.expires_at, k.lease_expires_at);
  get diagnostics deleted = row_count;
  if v_scopes is not null then
    delete from :"schema".steps s using unnest(v_scopes, v_keys) g(scope, key)
     where s.scope = g.scope collate "C" and s.key = g.key collate "C";
    delete from :"schema".unfinished u using unnest(v_scopes, v_keys) g(scope, key)
     where u.scope = g.scope collate "C" and u.key = g.key collate "C";
  end if;
end
$pgonce$;
