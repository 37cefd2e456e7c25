-- Takes a key's lock, waiting up to p_wait_ms. False: another transaction kept it until then. Null: the key is finished
-- by now; the rollback of the block has already passed the lock to the next waiting caller.
create or replace function :"schema"._wait_for_key(p_scope text, p_key text, p_wait_ms bigint) returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $pgonce$
begin
  perform :"schema"._take_lock(:"schema"._lock_id(p_scope, p_key),
                               clock_timestamp() + p_wait_ms * interval '1 millisecond');
  if exists (select from :"schema".idempotency_keys k
              where k.scope = p_scope and k.key = p_key and :"schema"._is_finished(k.status)) then
    raise exception 'the key is finished' using errcode = 'IK009';
  end if;
  return true;
exception
  when lock_not_available then
    return false;
  when sqlstate 'IK009' then
    return null;
end
$pgonce$;
