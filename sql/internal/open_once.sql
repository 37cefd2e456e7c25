-- Whether a transaction like the current one may write a new key's row at its end: above READ COMMITTED a look may
-- be older than the lock, and where nothing can be written the work need not begin.
create or replace function :"schema"._can_open() returns boolean
language sql volatile
return current_setting('transaction_isolation') = 'read committed'
   and current_setting('transaction_read_only') = 'off';

-- Waits until no transaction works on the key, side by side with others who only wait, or until p_wait_ms are over.
-- Says nothing: look again. Keeps neither lock nor setting, whatever transaction it is called in.
create or replace function :"schema"._wait_for(p_scope text, p_key text, p_wait_ms bigint) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $pgonce$
begin
  if :"schema"._fits_begin(p_scope, p_key, null, 1, null, p_wait_ms, 'retry', null) is not true then
    perform :"schema"._check_begin(p_scope, p_key, null, 1, null, p_wait_ms, 'retry', null);
  end if;
  begin
    perform :"schema"._bound_waits(clock_timestamp() + p_wait_ms * interval '1 millisecond', 1);
    perform pg_advisory_xact_lock_shared(:"schema"._lock_id(p_scope, p_key));
    raise exception 'give the lock back' using errcode = 'IK000';
  exception when lock_not_available or sqlstate 'IK000' then
    null;
  end;
end
$pgonce$;

-- Takes the right to perform an operation whose key is new, and writes nothing: the caller must commit with
-- _insert_finished. Only for code that cannot forget it: what it wrote without would have no key. Sent in one
-- message with BEGIN behind it, which takes the transaction over with the key's lock in it:
--   select _open_once(..); begin; savepoint ..
-- Raises IK004 when the key has a row or is being worked on, or when the transaction does not allow it (_can_open):
-- ask begin. When another transaction works on a key without a row, it waits for that transaction first. Raises
-- IK001 as begin does. It pins no search_path, which costs a call 10 to 20 us, so every name in it is qualified.
create or replace function :"schema"._open_once(
  p_scope text, p_key text, p_retention_ms bigint, p_wait_ms bigint, p_max_attempts integer)
returns void
language plpgsql volatile
as $pgonce$
declare
  v_is_ours boolean;
begin
  if :"schema"._fits_begin(p_scope, p_key, null, p_retention_ms, null, p_wait_ms, 'retry', p_max_attempts) is not true then
    perform :"schema"._check_begin(p_scope, p_key, null, p_retention_ms, null, p_wait_ms, 'retry', p_max_attempts);
  end if;
  if :"schema"._can_open() then
    v_is_ours := pg_catalog.pg_try_advisory_xact_lock(:"schema"._lock_id(p_scope, p_key));
    -- A statement of its own: a snapshot taken before the lock would miss what its last holder committed.
    perform from :"schema".idempotency_keys k
    where k.scope operator(pg_catalog.=) p_scope collate pg_catalog."C"
      and k.key operator(pg_catalog.=) p_key collate pg_catalog."C";
    if not found and v_is_ours then
      return;
    elsif not found and p_wait_ms operator(pg_catalog.>) 0 then
      perform :"schema"._wait_for(p_scope, p_key, p_wait_ms); -- its holder will most likely leave an answer
    end if;
  end if;
  raise exception 'the key is not new' using errcode = 'IK004';
end
$pgonce$;
