-- Deletes forgotten keys with all that belongs to them, oldest first, in batches of p_batch_size (1 to 100000) that
-- are committed one by one; p_batches_max null: until nothing is left. Rows that others have locked are skipped, a
-- claim that is live or a row that is corrupt is not touched, and any number of reapers may run. Answers how many keys
-- were deleted, and a watermark to go on from. Refused inside a transaction (2D000). One line for a scheduler.
create or replace procedure :"schema".reap(
  p_batch_size  integer default 1000,
  p_batches_max integer default null,
  inout watermark bigint default null,
  inout deleted   bigint default null)
language plpgsql
as $pgonce$
declare
  v_deleted bigint;
  v_batches integer := 0;
begin
  deleted := 0;
  commit;
  set transaction isolation level read committed;
  loop
    select b.watermark, b.deleted into watermark, v_deleted from :"schema"._reap_batch(p_batch_size, watermark) b;
    deleted := deleted operator(pg_catalog.+) v_deleted;
    v_batches := v_batches operator(pg_catalog.+) 1;
    commit;
    set transaction isolation level read committed;
    exit when v_deleted operator(pg_catalog.<) p_batch_size or v_batches operator(pg_catalog.>=) p_batches_max;
  end loop;
end
$pgonce$;
comment on procedure :"schema".reap is
  'Deletes forgotten keys in batches, and commits each. Call it from a scheduler, or run the reaper in your service.';
