-- Deletes up to batch_size keys past their retention with all that belongs to them, oldest first, and never one with
-- a live lease. Rows that another reaper or a begin has locked are skipped, so any number may run at once.
-- Repeat with the returned watermark until `deleted` is less than batch_size: behind the watermark
-- lie only index entries of deleted rows, which an old snapshot keeps and every batch would re-read.
create or replace function :"schema".reap(
  batch_size integer default 1000,
  inout watermark timestamptz default null,
  out deleted bigint)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
-- Along the index as far as batch_size, then by place, whatever the statistics say: never the whole table.
set enable_sort = off
set enable_seqscan = off
set jit = off
as $pgonce$
#variable_conflict use_variable
declare
  at constant timestamptz := :"schema".clock();
  rows   tid[];
  scopes text[]; -- of the few keys that have more than their row
  keys   text[];
begin
  perform :"schema".check_range('batch_size', batch_size, 1, 100000);
  select array_agg(o.ctid), coalesce(max(o.expires_at), watermark),
         array_agg(o.scope) filter (where o.more), array_agg(o.key) filter (where o.more)
    into rows, watermark, scopes, keys
    from (
      select k.ctid, k.expires_at, k.scope, k.key, k.steps > 0 or k.leased and k.status = 1 as more
        from :"schema".idempotency_keys k
       where k.expires_at >= coalesce(watermark, '-infinity') and k.expires_at <= at
         and (k.status <> 1 or k.lease_expires_at <= at)
       order by k.expires_at
       limit batch_size
         for update skip locked) o;
  -- By ctid: six times faster than by key, and safe because the rows are locked: nobody can move them.
  -- A statement of its own: one that returns what it deleted, to be aggregated, is a fifth slower.
  delete from :"schema".idempotency_keys where ctid = any (rows);
  get diagnostics deleted = row_count;
  if scopes is not null then
    delete from :"schema".steps s using unnest(scopes, keys) g(scope, key)
     where s.scope = g.scope collate "C" and s.key = g.key collate "C";
    delete from :"schema".unfinished u using unnest(scopes, keys) g(scope, key)
     where u.scope = g.scope collate "C" and u.key = g.key collate "C";
  end if;
end
$pgonce$;
