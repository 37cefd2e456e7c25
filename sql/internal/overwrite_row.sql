-- Makes a claim out of a row that begin may overwrite: lapsed, released or forgotten, or the claim of the caller's
-- own token. p_seen_*: the row as the caller has read it. Null: it has changed since, so look again. Locks the row
-- before it reads the clock: a lease counted before the wait would start in the past. Locked and written in the
-- caller's subtransaction; in two, each takeover would make a multixact.
create or replace function :"schema"._overwrite_row(
  p_scope text, p_key text, p_seen_status smallint, p_seen_token uuid, p_seen_expires_at timestamptz,
  p_seen_lease_expires_at timestamptz, p_fingerprint bytea, p_retention_ms bigint, p_token uuid, p_lease_ms bigint,
  out token uuid, out attempt integer, out recovered boolean)
language plpgsql volatile
as $pgonce$
declare
  v_row       :"schema".idempotency_keys;
  v_token     uuid := coalesce(p_token, gen_random_uuid());
  v_attempt   integer;
  v_at        timestamptz;
  v_lease_end timestamptz;
  v_forgotten boolean;
begin
  select k.* into v_row from :"schema".idempotency_keys k
    where k.scope = p_scope collate "C" and k.key = p_key collate "C" and k.status = p_seen_status
      and k.token is not distinct from p_seen_token
      and k.expires_at = p_seen_expires_at and k.lease_expires_at is not distinct from p_seen_lease_expires_at
    for no key update;
  if not found then
    return;
  end if;
  v_attempt := coalesce(v_row.attempt, 1);
  v_at := :"schema"._clock();
  v_lease_end := v_at + p_lease_ms * interval '1 millisecond';
  v_forgotten := :"schema"._is_forgotten(v_row.status, v_row.expires_at, v_row.lease_expires_at, v_at);
  if v_row.token = p_token and not v_forgotten then
    -- The caller asks again, because the answer to its leased begin was lost.
    update :"schema".idempotency_keys k set lease_expires_at = greatest(k.lease_expires_at, v_lease_end)
     where k.scope = v_row.scope and k.key = v_row.key;
  elsif v_row.status = 1 and (v_row.token is not null or v_row.steps > 0) and not v_forgotten then
    -- Lapsed, or released with steps done: the same operation goes on. Its retention still counts from the first begin.
    v_attempt := v_attempt + 1;
    recovered := true;
    update :"schema".idempotency_keys k
       set token = v_token, attempt = v_attempt, fingerprint = coalesce(k.fingerprint, p_fingerprint),
           leased = p_lease_ms is not null, lease_expires_at = coalesce(v_lease_end, k.expires_at)
     where k.scope = v_row.scope and k.key = v_row.key;
    if p_lease_ms is null then
      perform :"schema"._unlist_unfinished(v_row.scope, v_row.key);
    elsif v_row.token is null or v_row.leased is not true then -- otherwise it is listed, and its tries count on
      perform :"schema"._list_unfinished(v_row.scope, v_row.key, v_lease_end);
    end if;
  else
    -- Released or forgotten: a new operation in the old row.
    recovered := false;
    v_attempt := case when v_forgotten then 1 else v_attempt + 1 end;
    update :"schema".idempotency_keys k
       set created_at = v_at, expires_at = v_at + p_retention_ms * interval '1 millisecond',
           lease_expires_at = v_at + coalesce(p_lease_ms, p_retention_ms) * interval '1 millisecond',
           completed_at = null, token = v_token, attempt = v_attempt, status = 1, fingerprint = p_fingerprint,
           leased = p_lease_ms is not null,
           response_code = null, response_headers = null, response_body = null, response_omitted = false,
           attempts_uncounted = case when not v_forgotten then v_row.attempts_uncounted end,
           steps = null, last_error = null, progress = null
     where k.scope = v_row.scope and k.key = v_row.key;
    if v_row.steps > 0 then
      delete from :"schema".steps s where s.scope = v_row.scope and s.key = v_row.key;
    end if;
    if p_lease_ms is not null then
      perform :"schema"._list_unfinished(v_row.scope, v_row.key, v_lease_end);
    elsif v_row.leased then
      perform :"schema"._unlist_unfinished(v_row.scope, v_row.key);
    end if;
  end if;
  token := v_token;
  attempt := v_attempt;
  recovered := coalesce(recovered, v_attempt > 1); -- an own claim that is asked for again: perhaps
end
$pgonce$;
