-- Bounds the waits for locks: until p_deadline, but for p_at_least_ms in any case. Holds until lock_timeout is set
-- again or the block is rolled back. (A bound of zero would mean none.)
create or replace function :"schema"._bound_waits(p_deadline timestamptz, p_at_least_ms integer) returns text
language sql volatile
as $pgonce$
  select set_config('lock_timeout',
    greatest(p_at_least_ms, ceil(extract(epoch from p_deadline - clock_timestamp()) * 1000))::bigint::text, true)
$pgonce$;

-- For calls that take no bound of their own: the caller's lock_timeout, or five seconds where none is set.
create or replace function :"schema"._bound_waits_by_caller() returns text
language sql volatile
as $pgonce$
  select case current_setting('lock_timeout') when '0' then set_config('lock_timeout', '5s', true) end
$pgonce$;
