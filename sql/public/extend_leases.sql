-- Pushes the leases of many claims at once, each to p_leases_ms from now, and commits. Does not pull a lease in. A
-- lapsed claim that was not taken over is alive again. Answers in the order given: `extended`; `lost`; or `locked`,
-- when another transaction has the row locked: try again, nothing was waited for. Up to 10000 claims; a lease takes
-- 1 ms to ten years. Refused inside a transaction (2D000).
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
  'Pushes the leases of many claims, and commits. Answers extended, lost or locked for each.';
