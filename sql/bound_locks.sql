-- Bounds the waits for locks by a deadline, until lock_timeout is set again or the block is undone. It returns what
-- it has set: a function that returns nothing would be parsed and planned in each call.
create or replace function :"schema".bound_locks(deadline timestamptz) returns text
language sql volatile
as $pgonce$
  select set_config('lock_timeout',
    greatest(1, ceil(extract(epoch from deadline - clock_timestamp()) * 1000))::bigint::text, true)
$pgonce$;
