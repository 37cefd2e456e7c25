-- Waits for a key's advisory lock until the deadline. Answers
--   locked    this transaction has it now
--   finished  the key was finished meanwhile: the lock was given back at once, so that replays
--             that waited together do not queue behind each other's transactions
--   timeout   somebody else still has it
-- The block with `exception` is a subtransaction: leaving it by an error undoes both the lock and
-- the lock_timeout, and nothing was written, so no transaction id is spent.
create or replace function :"schema".wait_for_lock(lock_id bigint, scope text, key text, deadline timestamptz)
returns text
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $pgonce$
#variable_conflict use_variable
declare
  bound_ms constant bigint := floor(extract(epoch from deadline - clock_timestamp()) * 1000);
  outer_timeout constant text := current_setting('lock_timeout');
begin
  if bound_ms < 1 then
    return 'timeout';
  end if;
  perform set_config('lock_timeout', bound_ms::text, true);
  perform pg_advisory_xact_lock(lock_id);
  perform set_config('lock_timeout', outer_timeout, true);
  if exists (select from :"schema".idempotency_keys k
              where k.scope = scope and k.key = key and k.status <> 1) then
    raise exception 'give the lock back' using errcode = 'IK000';
  end if;
  return 'locked';
exception
  when lock_not_available then return 'timeout';
  when sqlstate 'IK000' then return 'finished';
end
$pgonce$;
