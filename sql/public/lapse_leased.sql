-- Gives up a leased claim whose work may have called a remote: the key stays bound to its request. The claim lapses at
-- once, and the same request may begin again; with p_at_once false, it lapses when its lease ends, for callers whose
-- policy then holds the key for an operator. p_last_error: how the attempt ended, for people; keeps 1000 characters.
-- p_counts false: the attempt was postponed and does not count toward a cap. Commits. Refused inside a transaction
-- (2D000). Raises IK002 if the claim is lost.
create or replace procedure :"schema".lapse_leased(
  p_scope text, p_key text, p_token uuid, p_last_error text default null, p_at_once boolean default true,
  p_counts boolean default true)
language plpgsql
as $pgonce$
begin
  commit;
  set transaction isolation level read committed;
  perform :"schema"._lapse(p_scope, p_key, p_token, p_last_error, p_at_once, p_counts);
  commit;
end
$pgonce$;
comment on procedure :"schema".lapse_leased is
  'Gives up a leased claim, keeps its key bound to its request, and commits.';
