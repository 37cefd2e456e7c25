-- Returns what callers were answered from p_from on and before p_until, summed over all processes, in steps of
-- p_step_seconds (60 to 604800) counted from 1970. Leaves out steps without a row. p_scope null: all scopes; empty: those
-- that no process told apart. Up to 10000 steps. Raises IK001 for a bad argument.
create or replace function :"schema".history(
  p_from timestamptz, p_until timestamptz, p_step_seconds integer default 60, p_scope text default null)
returns table (
  bucket timestamptz, started bigint, replayed bigint, in_progress bigint, mismatch bigint, held bigint,
  recovered bigint, completed bigint, failed bigint, released bigint, claim_lost bigint, commit_unknown bigint,
  duplicates bigint, value bigint, unkeyed bigint, observed_duplicates bigint, observed_mismatches bigint,
  observed_value bigint)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $pgonce$
begin
  perform :"schema"._check_period(p_from, p_until);
  perform :"schema"._check_range('step_seconds', p_step_seconds, 60, 604800);
  perform :"schema"._check_range('the number of steps',
    ceil((extract(epoch from p_until) - extract(epoch from p_from)) / p_step_seconds)::bigint, 0, 10000);
  return query
  select date_bin(make_interval(secs => p_step_seconds), h.minute, timestamptz 'epoch'),
         :"schema"._total(sum(h.started)), :"schema"._total(sum(h.replayed)), :"schema"._total(sum(h.in_progress)),
         :"schema"._total(sum(h.mismatch)), :"schema"._total(sum(h.held)), :"schema"._total(sum(h.recovered)),
         :"schema"._total(sum(h.completed)), :"schema"._total(sum(h.failed)), :"schema"._total(sum(h.released)),
         :"schema"._total(sum(h.claim_lost)), :"schema"._total(sum(h.commit_unknown)),
         :"schema"._total(sum(h.duplicates)), :"schema"._total(sum(h.value)), :"schema"._total(sum(h.unkeyed)),
         :"schema"._total(sum(h.observed_duplicates)), :"schema"._total(sum(h.observed_mismatches)),
         :"schema"._total(sum(h.observed_value))
    from :"schema".history h
   where h.minute >= p_from and h.minute < p_until and (p_scope is null or h.scope = p_scope collate "C")
   group by 1
   order by 1;
end
$pgonce$;
comment on function :"schema".history is
  'Returns what callers were answered over time, if their processes keep a history.';
