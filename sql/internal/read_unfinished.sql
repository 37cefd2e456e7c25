-- Returns the keys listed as unfinished, of one scope or of all, with their states: up to p_count_max, in the order of
-- scope and key. For counts and lists that operators look at; locks nothing. Looks each key up by its primary key:
-- offset 0 keeps the planner from reading all keys.
create or replace function :"schema"._read_unfinished(p_scope text, p_count_max bigint)
returns table (
  scope text, key text, state text, held_because text, is_message boolean, used integer, max_attempts integer,
  steps integer, tries integer, try_at timestamptz, created_at timestamptz, lease_expires_at timestamptz,
  last_error text)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
-- Plans for this p_scope, so that a null is not a filter.
set plan_cache_mode = force_custom_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set jit = off
as $pgonce$
declare
  v_at constant timestamptz := :"schema"._clock();
begin
  return query
  select u.scope, u.key,
         :"schema"._unfinished_word(k.status, k.token, k.lease_expires_at, k.steps, k.attempts_uncounted, k.expires_at,
                                    h.because, v_at),
         h.because, :"schema"._is_message(k.fingerprint, k.steps, u.max_attempts),
         coalesce(k.attempt, 1) - coalesce(k.attempts_uncounted, 0), u.max_attempts, coalesce(k.steps, 0), u.tries,
         nullif(u.try_at, 'infinity'), k.created_at, k.lease_expires_at, k.last_error
    from (select l.* from :"schema".unfinished l
           where p_scope is null or l.scope = p_scope collate "C"
           order by l.scope, l.key limit p_count_max) u
   cross join lateral (
     select r.* from :"schema".idempotency_keys r where r.scope = u.scope and r.key = u.key offset 0) k
   cross join lateral (
     select :"schema"._held_because(k.token, k.attempt, k.attempts_uncounted,
                                    case when u.holds then 'hold' else 'retry' end, u.max_attempts) as because) h;
end
$pgonce$;
