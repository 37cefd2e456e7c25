-- Returns what callers were answered from p_from on and before p_until, per scope and class, the busiest first: those
-- with the most started. An empty scope: those that no process told apart. p_limit: 1 to 10000 rows. Raises IK001 for a
-- bad argument.
create or replace function :"schema".history_by_scope(
  p_from timestamptz, p_until timestamptz, p_limit integer default 100)
returns table (
  scope text, class text, started bigint, replayed bigint, in_progress bigint, mismatch bigint, held bigint,
  recovered bigint, completed bigint, failed bigint, released bigint, claim_lost bigint, commit_unknown bigint,
  duplicates bigint, value bigint, unkeyed bigint, observed_duplicates bigint, observed_mismatches bigint,
  observed_value bigint)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $pgonce$
begin
  perform :"schema"._check_period(p_from, p_until);
  perform :"schema"._check_range('limit', p_limit, 1, 10000);
  return query
  select h.scope, h.class,
         :"schema"._total(sum(h.started)), :"schema"._total(sum(h.replayed)), :"schema"._total(sum(h.in_progress)),
         :"schema"._total(sum(h.mismatch)), :"schema"._total(sum(h.held)), :"schema"._total(sum(h.recovered)),
         :"schema"._total(sum(h.completed)), :"schema"._total(sum(h.failed)), :"schema"._total(sum(h.released)),
         :"schema"._total(sum(h.claim_lost)), :"schema"._total(sum(h.commit_unknown)),
         :"schema"._total(sum(h.duplicates)), :"schema"._total(sum(h.value)), :"schema"._total(sum(h.unkeyed)),
         :"schema"._total(sum(h.observed_duplicates)), :"schema"._total(sum(h.observed_mismatches)),
         :"schema"._total(sum(h.observed_value))
    from :"schema".history h
   where h.minute >= p_from and h.minute < p_until
   group by h.scope, h.class
   order by sum(h.started) desc, h.scope, h.class
   limit p_limit;
end
$pgonce$;
comment on function :"schema".history_by_scope is
  'Returns what callers were answered, per scope and class, if their processes keep a history.';
