-- Like release, for a leased claim without business writes. Commits. Refused inside a transaction (2D000).
create or replace procedure :"schema".release_leased(
  p_scope text, p_key text, p_token uuid, p_last_error text default null)
language plpgsql
as $pgonce$
begin
  commit;
  set transaction isolation level read committed;
  perform :"schema".release(p_scope, p_key, p_token, p_last_error);
  commit;
end
$pgonce$;
comment on procedure :"schema".release_leased is
  'Gives a leased claim back unfinished, and commits: the key can be begun again at once.';
