-- Deletes up to p_batch_size rows of the history whose time is over, oldest first. Returns whether there may be more.
-- One reaper at a time: another one would wait for this one's rows.
create or replace function :"schema"._reap_history(p_batch_size integer) returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
-- Reads the index up to p_batch_size, whatever the statistics say.
set enable_sort = off
set enable_seqscan = off
set jit = off
as $pgonce$
declare
  v_at constant timestamptz := :"schema"._clock();
  v_deleted bigint;
begin
  if not pg_try_advisory_xact_lock(hashtextextended('pgonce reap history ' || :'schema', 0)) then
    return false;
  end if;
  delete from :"schema".history h
   using (
     select o.minute, o.scope, o.class, o.source
       from :"schema".history o
      where o.expires_at <= v_at
      order by o.expires_at
      limit p_batch_size) o
   where h.minute = o.minute and h.scope = o.scope and h.class = o.class and h.source = o.source;
  get diagnostics v_deleted = row_count;
  return v_deleted = p_batch_size;
end
$pgonce$;
