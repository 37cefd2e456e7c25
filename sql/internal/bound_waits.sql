-- Returns the time until statement_timeout ends the current statement, less a reserve for the answer: half the timeout,
-- at most 200 ms. Null: no timeout. Waits end by then with an answer, because the timeout's error would abort the
-- caller's transaction. Catching that error is no solution: it looks like a cancel by a person.
create or replace function :"schema"._statement_left() returns interval
language sql volatile
return nullif(current_setting('statement_timeout'), '0')::interval
  - least(nullif(current_setting('statement_timeout'), '0')::interval / 2, interval '200 milliseconds')
  - (clock_timestamp() - statement_timestamp());

-- Bounds lock waits to p_deadline, but to at least p_at_least_ms, and never beyond the statement's time. Applies until
-- lock_timeout is set again or the block is rolled back. Zero would mean no bound.
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

-- Bounds lock waits to 250 ms. lock_timeout also limits the wait for a page at the end of the table, and 250 ms are
-- enough for that. Inlined; only the rare case is a call.
create or replace function :"schema"._bound_waits_briefly() returns text
language sql volatile
return case current_setting('statement_timeout')
  when '0' then set_config('lock_timeout', '250', true)
  else :"schema"._bound_waits(null, 250) end;

-- Bounds lock waits of calls without a wait argument: to the caller's lock_timeout, or to five seconds if none is set.
-- Returns null if the caller has set one: there is nothing to set back.
create or replace function :"schema"._bound_waits_by_caller() returns text
language sql volatile
return case
  when current_setting('lock_timeout') <> '0' then null
  when current_setting('statement_timeout') = '0' then set_config('lock_timeout', '5000', true)
  else :"schema"._bound_waits(clock_timestamp() + interval '5 seconds', 1) end;
