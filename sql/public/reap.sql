-- Deletes forgotten keys and all that belongs to them, oldest first, in batches of p_batch_size (1 to 100000), each
-- committed; with each batch as many rows of the history whose time is over. p_batches_max null: until nothing is left.
-- Without a watermark, first makes and drops partitions of the audit trail, if that is on. Skips rows that others have
-- locked, live claims and corrupt rows. Any number of reapers may run. Returns how many keys were deleted, a watermark to
-- continue from, and whether there may be more to delete: the last batch was full. Refused inside a transaction (2D000). A
-- scheduler needs only this call.
create or replace procedure :"schema".reap(
  p_batch_size  integer default 1000,
  p_batches_max integer default null,
  inout watermark bigint default null,
  inout deleted   bigint default null,
  inout more      boolean default null)
language plpgsql
as $pgonce$
declare
  v_deleted bigint;
  v_batches integer := 0;
begin
  deleted := 0;
  commit;
  set transaction isolation level read committed;
  if watermark is null then
    perform :"schema"._keep_audit();
    commit;
    set transaction isolation level read committed;
  end if;
  loop
    select b.watermark, b.deleted into watermark, v_deleted from :"schema"._reap_batch(p_batch_size, watermark) b;
    deleted := deleted operator(pg_catalog.+) v_deleted;
    v_batches := v_batches operator(pg_catalog.+) 1;
    more := :"schema"._reap_history(p_batch_size) or v_deleted operator(pg_catalog.>=) p_batch_size;
    commit;
    set transaction isolation level read committed;
    exit when not more or v_batches operator(pg_catalog.>=) p_batches_max;
  end loop;
end
$pgonce$;
comment on procedure :"schema".reap is
  'Deletes forgotten keys in batches, and commits each. Call it from a scheduler, or run the reaper in your service.';
