-- What is left until statement_timeout ends the current statement, less what an answer takes (half of it, at most
-- 200 ms); null: it has no end. A wait that would last longer ends there with an answer, instead of an error that aborts
-- the caller's transaction. (Catching that error would not do: it looks the same as a cancel by a person.)
create or replace function :"schema"._statement_left() returns interval
language sql volatile
return nullif(current_setting('statement_timeout'), '0')::interval
  - least(nullif(current_setting('statement_timeout'), '0')::interval / 2, interval '200 milliseconds')
  - (clock_timestamp() - statement_timestamp());

-- Bounds the waits for locks: until p_deadline, but for p_at_least_ms in any case, and never beyond the statement.
-- Holds until lock_timeout is set again or the block is rolled back. (A bound of zero would mean none.)
create or replace function :"schema"._bound_waits(p_deadline timestamptz, p_at_least_ms integer) returns text
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $pgonce$
begin
  return set_config('lock_timeout',
    greatest(1, least(
      greatest(p_at_least_ms, ceil(extract(epoch from p_deadline - clock_timestamp()) * 1000)),
      floor(extract(epoch from :"schema"._statement_left()) * 1000)))::bigint::text, true);
end
$pgonce$;

-- The same for 250 ms: enough for the wait for a page at the end of the table. Inlined, so the rare case is a call.
create or replace function :"schema"._bound_waits_briefly() returns text
language sql volatile
return case current_setting('statement_timeout')
  when '0' then set_config('lock_timeout', '250', true)
  else :"schema"._bound_waits(null, 250) end;

-- For calls that take no bound of their own: the caller's lock_timeout, or five seconds where none is set. Null: one is
-- set, so there is nothing to set back.
create or replace function :"schema"._bound_waits_by_caller() returns text
language sql volatile
return case
  when current_setting('lock_timeout') <> '0' then null
  when current_setting('statement_timeout') = '0' then set_config('lock_timeout', '5000', true)
  else :"schema"._bound_waits(clock_timestamp() + interval '5 seconds', 1) end;
