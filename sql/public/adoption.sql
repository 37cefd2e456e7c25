-- Returns how far each class is with its keys, from p_from on and before p_until: calls; calls with a key; duplicates, and
-- their value, that were prevented, and that would have been (while only observed); mismatches of both kinds; and of the
-- keys that were looked at (up to 100 of each of up to 20 scopes), how many look like counted numbers. mode: the rollout
-- mode, if one is set. Known only of processes that keep a history. Needs the right to read `history`, `rollout` and the
-- keys. Raises IK001 for a bad argument.
create or replace function :"schema".adoption(p_from timestamptz, p_until timestamptz)
returns table (
  class text, mode text, calls bigint, keyed bigint, duplicates bigint, observed_duplicates bigint, value bigint,
  observed_value bigint, mismatches bigint, observed_mismatches bigint, keys_seen bigint, keys_guessable bigint)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $pgonce$
begin
  perform :"schema"._check_period(p_from, p_until);
  return query
  with counted as (
    select h.class, sum(h.started + h.duplicates + h.in_progress + h.mismatch + h.held + h.observed_duplicates
                        + h.observed_mismatches) as keyed,
           sum(h.unkeyed) as unkeyed, sum(h.duplicates) as duplicates, sum(h.observed_duplicates) as observed_duplicates,
           sum(h.value) as value, sum(h.observed_value) as observed_value, sum(h.mismatch) as mismatches,
           sum(h.observed_mismatches) as observed_mismatches
      from :"schema".history h
     where h.minute >= p_from and h.minute < p_until
     group by h.class),
  scopes as materialized (
    select distinct h.class, h.scope
      from :"schema".history h
     where h.minute >= p_from and h.minute < p_until and h.scope <> '')
  select c.class, (select m.mode from :"schema".rollout_modes() m where m.class = c.class),
         :"schema"._total(c.keyed + c.unkeyed), :"schema"._total(c.keyed), :"schema"._total(c.duplicates),
         :"schema"._total(c.observed_duplicates), :"schema"._total(c.value), :"schema"._total(c.observed_value),
         :"schema"._total(c.mismatches), :"schema"._total(c.observed_mismatches), coalesce(q.seen, 0), coalesce(q.guessable, 0)
    from counted c
    left join lateral (
      select sum(k.seen)::bigint as seen, sum(k.numbers)::bigint as guessable
        from (select t.scope from scopes t where t.class = c.class order by t.scope limit 20) s
       cross join lateral :"schema"._sample_keys(s.scope) k) q on true
   order by c.keyed + c.unkeyed desc, c.class;
end
$pgonce$;
comment on function :"schema".adoption is
  'Returns how many calls of each class have keys, and what protection has prevented or would have.';
