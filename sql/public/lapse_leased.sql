-- Gives a leased claim up whose work may have called a remote: the key stays bound to its request. It lapses at once,
-- and the same request may begin again; or, with p_at_once false, at the end of its lease, for callers whose policy
-- holds it for an operator. p_last_error: how the attempt ended, for people, of which 1000 characters are kept. p_counts
-- false: the attempt does not count against a cap, because its work could not be done now. Commits by itself. Refused inside a transaction (2D000). Raises IK002 when the claim is lost.
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
  'Gives a leased claim up and keeps its key bound to its request, and commits.';
