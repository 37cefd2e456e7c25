-- Implements record_history. One statement, in the order of the primary key.
create or replace function :"schema"._record_history(
  p_source uuid, p_minutes bigint[], p_scopes text[], p_classes text[], p_counts bigint[], p_retention_ms bigint)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $pgonce$
declare
  v_count constant integer := cardinality(p_minutes);
  v_at    constant timestamptz := :"schema"._clock();
begin
  perform :"schema"._check_range('the number of rows', v_count, 0, 10000);
  perform :"schema"._check_range('retention_ms', p_retention_ms, 1, 315576000000);
  if p_source is null then
    raise exception 'source is null' using errcode = 'IK001';
  elsif v_count is distinct from cardinality(p_scopes) or v_count is distinct from cardinality(p_classes)
    or v_count * 17 is distinct from cardinality(p_counts) then
    raise exception 'minutes, scopes and classes differ in length, or counts has not 17 for each'
      using errcode = 'IK001';
  elsif exists (select from unnest(p_counts) c(n) where c.n is null or c.n not between 0 and 1000000000000000) then
    raise exception 'one of counts is null or outside its limits; it takes 0 to 1000000000000000'
      using errcode = 'IK001';
  elsif exists (select from unnest(p_minutes) m(n) where m.n is null or m.n not between 0 and 4000000000) then
    raise exception 'one of minutes is null or outside its limits; it takes 0 to 4000000000' using errcode = 'IK001';
  end if;
  perform :"schema"._check_name('scope', s.name) from unnest(p_scopes) s(name) where s.name is distinct from '';
  perform :"schema"._check_name('class', c.name) from unnest(p_classes) c(name);
  insert into :"schema".history as h
    (minute, expires_at, started, replayed, in_progress, mismatch, held, recovered, completed, failed, released,
     claim_lost, commit_unknown, duplicates, value, unkeyed, observed_duplicates, observed_mismatches, observed_value,
     source, scope, class)
  select t.minute,
         -- A clock that is ahead must not keep its rows for longer.
         least(t.minute, v_at) + p_retention_ms * interval '1 millisecond',
         t.counts[1], t.counts[2], t.counts[3], t.counts[4], t.counts[5], t.counts[6], t.counts[7], t.counts[8],
         t.counts[9], t.counts[10], t.counts[11], t.counts[12], t.counts[13], t.counts[14], t.counts[15], t.counts[16],
         t.counts[17], p_source, t.scope, t.class
    from (
      -- Of a row given twice, the last: a statement cannot update a row twice.
      select distinct on (r.minute, r.scope collate "C", r.class collate "C")
             timestamptz 'epoch' + r.minute * interval '1 minute' as minute, r.scope, r.class,
             p_counts[(r.place * 17 - 16)::integer : (r.place * 17)::integer] as counts
        from unnest(p_minutes, p_scopes, p_classes) with ordinality r(minute, scope, class, place)
       order by r.minute, r.scope collate "C", r.class collate "C", r.place desc) t
  on conflict (scope, class, minute, source) do update
     set started = greatest(h.started, excluded.started), replayed = greatest(h.replayed, excluded.replayed),
         in_progress = greatest(h.in_progress, excluded.in_progress), mismatch = greatest(h.mismatch, excluded.mismatch),
         held = greatest(h.held, excluded.held), recovered = greatest(h.recovered, excluded.recovered),
         completed = greatest(h.completed, excluded.completed), failed = greatest(h.failed, excluded.failed),
         released = greatest(h.released, excluded.released), claim_lost = greatest(h.claim_lost, excluded.claim_lost),
         commit_unknown = greatest(h.commit_unknown, excluded.commit_unknown),
         duplicates = greatest(h.duplicates, excluded.duplicates), value = greatest(h.value, excluded.value),
         unkeyed = greatest(h.unkeyed, excluded.unkeyed),
         observed_duplicates = greatest(h.observed_duplicates, excluded.observed_duplicates),
         observed_mismatches = greatest(h.observed_mismatches, excluded.observed_mismatches),
         observed_value = greatest(h.observed_value, excluded.observed_value);
end
$pgonce$;
