-- Extends the leases of many claims, each to p_leases_ms from now, and commits. Never shortens a lease. Revives a
-- lapsed claim that was not taken over. Answers in the given order: `extended`, `lost`, or, if another transaction has
-- locked the row, `locked`: it did not wait, try again. Up to 10000 claims; leases of 1 ms to ten years. Refused inside
-- a transaction (2D000).
create or replace procedure :"schema".extend_leases(
  p_scopes    text[],
  p_keys      text[],
  p_tokens    uuid[],
  p_leases_ms bigint[],
  inout answers text[] default null)
language plpgsql
as $pgonce$
begin
  commit;
  set transaction isolation level read committed;
  answers := :"schema"._extend_leases(p_scopes, p_keys, p_tokens, p_leases_ms);
  commit;
end
$pgonce$;
comment on procedure :"schema".extend_leases is
  'Extends the leases of many claims, and commits. Answers extended, lost or locked for each.';
