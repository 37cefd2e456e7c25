-- Like record_step, for a step without business writes. Commits. Refused inside a transaction (2D000).
create or replace procedure :"schema".commit_step(
  p_scope text, p_key text, p_token uuid, p_name text, p_definition bytea, p_output bytea)
language plpgsql
as $pgonce$
begin
  commit;
  set transaction isolation level read committed;
  perform :"schema".record_step(p_scope, p_key, p_token, p_name, p_definition, p_output);
  commit;
end
$pgonce$;
comment on procedure :"schema".commit_step is
  'Records the output of a step of a leased claim''s work, and commits.';
