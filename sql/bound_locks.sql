-- Bounds the waits for locks by a deadline, until lock_timeout is set again or the block is undone.
create or replace function :"schema".bound_locks(deadline timestamptz) returns void
language sql volatile
as $pgonce$
  select pg_catalog.set_config('lock_timeout',
    greatest(1, ceil(extract(epoch from deadline - pg_catalog.clock_timestamp()) * 1000))::bigint::text, true)
$pgonce$;
