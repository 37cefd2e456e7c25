-- Records what callers were answered, for operators: one row per minute, scope and class. Commits. Refused inside a
-- transaction (2D000).
--
-- p_counts holds totals, not increments: for each row 17, in the order of the table's columns (started, replayed,
-- in_progress, mismatch, held, recovered, completed, failed, released, claim_lost, commit_unknown, duplicates, value,
-- unkeyed, observed_duplicates, observed_mismatches, observed_value). A total never shrinks, so a call whose answer was
-- lost can be repeated. p_source: a random id of the process. p_minutes: minutes since 1970. An empty scope stands for all
-- scopes that the process does not tell apart. Up to 10000 rows; each count is 0 to 10^15. p_retention_ms: how long after
-- its minute a row is kept. Raises IK001 for a bad argument.
create or replace procedure :"schema".record_history(
  p_source       uuid,
  p_minutes      bigint[],
  p_scopes       text[],
  p_classes      text[],
  p_counts       bigint[],
  p_retention_ms bigint)
language plpgsql
as $pgonce$
begin
  commit;
  set transaction isolation level read committed;
  perform :"schema"._record_history(p_source, p_minutes, p_scopes, p_classes, p_counts, p_retention_ms);
  commit;
end
$pgonce$;
comment on procedure :"schema".record_history is
  'Records what callers were answered, per minute, scope and class, and commits.';
