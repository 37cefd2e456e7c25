-- Takes a key's lock, waiting for it up to p_wait_ms. False: another transaction kept it until then.
create or replace function :"schema"._wait_for_key(p_scope text, p_key text, p_wait_ms bigint) returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $pgonce$
begin
  perform :"schema"._take_lock(:"schema"._lock_id(p_scope, p_key),
                               clock_timestamp() + p_wait_ms * interval '1 millisecond');
  return true;
exception when lock_not_available then
  return false;
end
$pgonce$;
