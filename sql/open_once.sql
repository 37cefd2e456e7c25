-- Takes the right to perform an operation whose key is new, and writes nothing: the caller must commit with
-- insert_finished. Only for code that cannot forget it: what it wrote without would have no key. Sent in one
-- message with BEGIN behind it, which takes the transaction over with the key's lock in it:
--   select open_once(..); begin; savepoint ..
-- Raises IK004 when the key has a row or is being worked on, or the transaction is none for this (can_open): ask
-- begin. When somebody works on it who has no row yet, it waits for that one first. Raises IK001 as begin does.
-- It pins no search_path, which costs a call 10 to 20 us, so that all in it is qualified.
create or replace function :"schema".open_once(
  scope text, key text, retention_ms bigint, wait_ms bigint, max_attempts integer)
returns void
language plpgsql volatile
as $pgonce$
#variable_conflict use_variable
declare
  is_ours boolean;
begin
  if :"schema".fits_begin(scope, key, null, retention_ms, null, wait_ms, 'retry', max_attempts) is not true then
    perform :"schema".check_begin(scope, key, null, retention_ms, null, wait_ms, 'retry', max_attempts);
  end if;
  if :"schema".can_open() then
    is_ours := pg_catalog.pg_try_advisory_xact_lock(:"schema".lock_id(scope, key));
    -- A statement of its own: a snapshot taken before the lock would miss what its last holder committed.
    perform from :"schema".idempotency_keys k
    where k.scope operator(pg_catalog.=) scope collate pg_catalog."C"
      and k.key operator(pg_catalog.=) key collate pg_catalog."C";
    if not found and is_ours then
      return;
    elsif not found and wait_ms operator(pg_catalog.>) 0 then
      perform :"schema".wait_for(scope, key, wait_ms); -- whoever works on it will most likely leave an answer
    end if;
  end if;
  raise exception 'the key is not new' using errcode = 'IK004';
end
$pgonce$;
