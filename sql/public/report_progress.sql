-- Stores what a claim's holder reports of its work, for callers that poll. Commits. Refused inside a transaction
-- (2D000). Raises IK001 over 64 KiB, IK002 if the claim is lost.
create or replace procedure :"schema".report_progress(p_scope text, p_key text, p_token uuid, p_progress bytea)
language plpgsql
as $pgonce$
begin
  commit;
  set transaction isolation level read committed;
  perform :"schema"._report_progress(p_scope, p_key, p_token, p_progress);
  commit;
end
$pgonce$;
comment on procedure :"schema".report_progress is
  'Stores what a claim''s holder reports of its work, and commits.';
