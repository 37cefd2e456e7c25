-- Picks up to p_count_max abandoned keys to begin again, longest due first, and commits. Postpones each key's next try
-- at once, by p_first_pause_ms, doubled with each try up to p_longest_pause_ms: other recoveries pick other keys, and a
-- key that always fails leaves room for the rest. Picking claims nothing; begin decides. p_scopes: a LIKE pattern.
-- Raises IK001 for a bad argument. Refused inside a transaction (2D000).
create or replace procedure :"schema".pick_abandoned(
  p_scopes           text,
  p_count_max        integer default 1,
  p_first_pause_ms   bigint  default 5000,
  p_longest_pause_ms bigint  default 3600000,
  inout scopes text[] default null,
  inout keys   text[] default null)
language plpgsql
as $pgonce$
begin
  commit;
  set transaction isolation level read committed;
  select a.scopes, a.keys into scopes, keys
    from :"schema"._pick_abandoned(p_scopes, p_count_max, p_first_pause_ms, p_longest_pause_ms) a;
  commit;
end
$pgonce$;
comment on procedure :"schema".pick_abandoned is
  'Picks abandoned keys to begin again, and postpones their next try.';
