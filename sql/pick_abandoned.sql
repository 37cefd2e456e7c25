-- Picks up to count_max abandoned keys to be begun again, those first that are due longest. Each is put off
-- at once, by first_pause_ms and from try to try by twice as much up to longest_pause_ms: others pick other
-- keys, and one that fails every time leaves room for the rest. Picking claims nothing; begin decides.
-- scopes: a pattern of LIKE. Raises IK001 for a bad argument.
create or replace function :"schema".pick_abandoned(
  scopes text,
  count_max integer default 1,
  first_pause_ms bigint default 5000,
  longest_pause_ms bigint default 3600000)
returns table (scope text, key text)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
-- In the order of the index, and only as far as count_max: never all that are due.
set enable_sort = off
set jit = off
as $pgonce$
#variable_conflict use_column
declare
  at constant timestamptz := :"schema".clock();
begin
  perform :"schema".check_name('scopes', scopes);
  perform :"schema".check_range('count_max', count_max, 1, 1000);
  perform :"schema".check_range('first_pause_ms', first_pause_ms, 1, 86400000);
  perform :"schema".check_range('longest_pause_ms', longest_pause_ms, first_pause_ms, 86400000);
  return query
  with due as (
    select u.scope, u.key
      from :"schema".unfinished u
     where u.try_at <= at and u.scope like scopes
       -- As in the view `abandoned`, and like there by its key.
       and exists (select from :"schema".keys k where k.scope = u.scope and k.key = u.key
                      and k.claim in ('lapsed', 'released') and k.expires_at > at offset 0)
     order by u.try_at
     limit count_max
       for update of u skip locked)
  update :"schema".unfinished u
     set tries = u.tries + 1,
         try_at = at + least(longest_pause_ms, first_pause_ms * 2 ^ least(u.tries, 30)) * interval '1 millisecond'
    from due
   where u.scope = due.scope and u.key = due.key
  returning u.scope, u.key;
end
$pgonce$;
