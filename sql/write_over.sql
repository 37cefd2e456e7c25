-- Makes a claim out of a row that begin may write over: lapsed, released or forgotten. Locks the row
-- exactly as seen, which a reaper or a foreign writer may hold until the deadline (55P03), and reads the
-- clock after that: a lease counted before the wait would start in the past. Raises IK000 when the row
-- has changed. Locked and written in one subtransaction, or each takeover would make a multixact.
create or replace function :"schema".write_over(
  seen :"schema".idempotency_keys, fingerprint bytea, retention_ms bigint, lease_ms bigint, deadline timestamptz,
  out token uuid, out attempt integer)
language plpgsql volatile
as $pgonce$
#variable_conflict use_variable
declare
  outer_timeout constant text := current_setting('lock_timeout');
  at timestamptz;
  anew boolean := false;
begin
  perform :"schema".bound_locks(deadline);
  perform 1 from :"schema".idempotency_keys k
    where k.scope = seen.scope and k.key = seen.key and k.status = seen.status
      and k.token is not distinct from seen.token
      and k.expires_at = seen.expires_at and k.lease_expires_at is not distinct from seen.lease_expires_at
    for no key update;
  if not found then
    raise exception 'look again' using errcode = 'IK000';
  end if;
  perform set_config('lock_timeout', outer_timeout, true);
  at := :"schema".clock();
  token := gen_random_uuid();
  if seen.status = 1 and (seen.token is not null or seen.steps > 0) and seen.expires_at > at then
    -- Lapsed, or released with steps done: the same operation goes on. Its retention still counts from
    -- the first begin.
    attempt := coalesce(seen.attempt, 1) + 1;
    update :"schema".idempotency_keys k
       set token = token, attempt = attempt, fingerprint = coalesce(k.fingerprint, fingerprint),
           leased = lease_ms is not null,
           lease_expires_at = coalesce(at + lease_ms * interval '1 millisecond', k.expires_at)
     where k.scope = seen.scope and k.key = seen.key;
  else
    -- Released or forgotten: a new operation in the old row.
    attempt := case when seen.expires_at > at then coalesce(seen.attempt, 1) + 1 else 1 end;
    update :"schema".idempotency_keys k
       set created_at = at, expires_at = at + retention_ms * interval '1 millisecond',
           lease_expires_at = at + coalesce(lease_ms, retention_ms) * interval '1 millisecond',
           completed_at = null, token = token, attempt = attempt, status = 1, fingerprint = fingerprint,
           leased = lease_ms is not null,
           response_code = null, response_headers = null, response_body = null, response_omitted = false,
           attempts_uncounted = case when seen.expires_at > at then seen.attempts_uncounted end,
           steps = null, last_error = null, progress = null
     where k.scope = seen.scope and k.key = seen.key;
    if seen.steps > 0 then
      delete from :"schema".steps s where s.scope = seen.scope and s.key = seen.key;
    end if;
    anew := true;
  end if;
  if lease_ms is null then
    if seen.leased then
      delete from :"schema".unfinished u where u.scope = seen.scope and u.key = seen.key;
    end if;
  elsif anew or seen.token is null or seen.leased is not true then -- otherwise it is listed, and its tries count on
    perform :"schema".enlist(seen.scope, seen.key, at + lease_ms * interval '1 millisecond');
  end if;
end
$pgonce$;
