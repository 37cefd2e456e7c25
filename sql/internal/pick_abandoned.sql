-- Implements pick_abandoned.
create or replace function :"schema"._pick_abandoned(
  p_scopes text, p_count_max integer, p_first_pause_ms bigint, p_longest_pause_ms bigint,
  out scopes text[], out keys text[])
language plpgsql volatile
set search_path = pg_catalog, pg_temp
-- Reads in index order up to p_count_max, never all that are due.
set enable_sort = off
set jit = off
as $pgonce$
declare
  v_at constant timestamptz := :"schema"._clock();
begin
  perform :"schema"._check_name('scopes', p_scopes);
  perform :"schema"._check_range('count_max', p_count_max, 1, 1000);
  perform :"schema"._check_range('first_pause_ms', p_first_pause_ms, 1, 86400000);
  perform :"schema"._check_range('longest_pause_ms', p_longest_pause_ms, p_first_pause_ms, 86400000);
  with due as (
    select u.scope, u.key
      from :"schema".unfinished u
     where u.try_at <= v_at and u.scope like p_scopes
       -- By key, with offset 0: see the view abandoned.
       and exists (select from :"schema".idempotency_keys k where k.scope = u.scope and k.key = u.key
                      and :"schema"._is_abandoned(k.status, k.token, k.lease_expires_at, k.steps, k.attempts_uncounted,
                                               k.expires_at, v_at)
                   offset 0)
     order by u.try_at
     limit p_count_max
       for update of u skip locked),
  picked as (
    update :"schema".unfinished u
       set tries = u.tries + 1,
           try_at = v_at
             + least(p_longest_pause_ms, p_first_pause_ms * 2 ^ least(u.tries, 30)) * interval '1 millisecond'
      from due
     where u.scope = due.scope and u.key = due.key
    returning u.scope, u.key)
  select coalesce(array_agg(p.scope), '{}'), coalesce(array_agg(p.key), '{}') into scopes, keys from picked p;
end
$pgonce$;
