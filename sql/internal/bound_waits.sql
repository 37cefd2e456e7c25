-- What is left until statement_timeout ends the current statement, less what an answer takes (half of it, at most
-- 200 ms); null: it has no end. A wait that would last longer ends there with an answer, instead of an error that aborts the caller's
-- transaction. (Catching that error would not do: it looks the same as a cancel by a person.)
create or replace function :"schema"._statement_left() returns interval
language sql volatile
as $pgonce$
  select s.most - least(s.most / 2, interval '200 milliseconds') - (clock_timestamp() - statement_timestamp())
    from (select nullif(current_setting('statement_timeout'), '0')::interval as most) s
$pgonce$;

-- Bounds the waits for locks: until p_deadline, but for p_at_least_ms in any case, and never beyond the statement.
-- Holds until lock_timeout is set again or the block is rolled back. (A bound of zero would mean none.)
create or replace function :"schema"._bound_waits(p_deadline timestamptz, p_at_least_ms integer) returns text
language sql volatile
as $pgonce$
  select set_config('lock_timeout',
    greatest(1, least(
      greatest(p_at_least_ms, ceil(extract(epoch from p_deadline - clock_timestamp()) * 1000)),
      floor(extract(epoch from :"schema"._statement_left()) * 1000)))::bigint::text, true)
$pgonce$;

-- For calls that take no bound of their own: the caller's lock_timeout, or five seconds where none is set.
create or replace function :"schema"._bound_waits_by_caller() returns text
language sql volatile
as $pgonce$
  select case current_setting('lock_timeout')
           when '0' then :"schema"._bound_waits(clock_timestamp() + interval '5 seconds', 1) end
$pgonce$;
