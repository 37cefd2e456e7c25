-- Returns what looks wrong, for doctor and the operator's page: no row if nothing does. anomaly: mismatches or duplicates
-- (their share in a scope has jumped; known only with a history), guessable_keys, late_reaper, greedy_scope. Then the scope,
-- if it is about one; what was seen; why that matters; what to do. Leaves out what its caller may not read. Never reads the
-- keys from end to end.
create or replace function :"schema".anomalies()
returns table (anomaly text, scope text, saw text, matters text, remedy text)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $pgonce$
declare
  v_reads_keys constant boolean := has_table_privilege(format('%I.%I', :'schema', :"schema"._keys_to_read()), 'select');
begin
  if has_table_privilege(':"schema".history', 'select') then
    return query select a.* from :"schema"._anomalous_rates() a;
  end if;
  if v_reads_keys then
    return query select a.* from :"schema"._late_reaper() a;
    return query select a.* from :"schema"._guessable_keys() a;
  end if;
  if v_reads_keys and has_table_privilege(':"schema".unfinished', 'select') then
    return query select a.* from :"schema"._greedy_scope() a;
  end if;
end
$pgonce$;
comment on function :"schema".anomalies is
  'Returns what looks wrong: rates that jumped, guessable keys, a reaper that is late, a scope that holds most keys.';
