-- Makes a claim of a row that begin may overwrite: lapsed, released, forgotten, or claimed with the caller's token.
-- p_seen_*: the row as the caller read it. Null: the row has changed, look again. Reads the clock after locking the
-- row, or the lease would start in the past. Locks and writes in one subtransaction, the caller's: with two, each
-- takeover would create a multixact.
create or replace function :"schema"._overwrite_row(
  p_scope text, p_key text, p_seen_status smallint, p_seen_token uuid, p_seen_expires_at timestamptz,
  p_seen_lease_expires_at timestamptz, p_fingerprint bytea, p_retention_ms bigint, p_token uuid, p_lease_ms bigint,
  p_on_lapse text, p_max_attempts integer,
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
    -- Repeats a leased begin whose answer was lost.
    update :"schema".idempotency_keys k set lease_expires_at = greatest(k.lease_expires_at, v_lease_end)
     where k.scope = v_row.scope and k.key = v_row.key;
  elsif v_row.status = 1 and (v_row.token is not null or v_row.steps > 0) and not v_forgotten then
    -- Lapsed, or released with steps: the same operation continues. Its retention still counts from the first begin.
    v_attempt := v_attempt + 1;
    recovered := true;
    update :"schema".idempotency_keys k
       set token = v_token, attempt = v_attempt, fingerprint = coalesce(k.fingerprint, p_fingerprint),
           leased = p_lease_ms is not null, lease_expires_at = coalesce(v_lease_end, k.expires_at)
     where k.scope = v_row.scope and k.key = v_row.key;
    if p_lease_ms is null then
      perform :"schema"._unlist_unfinished(v_row.scope, v_row.key);
    elsif v_row.token is null or v_row.leased is not true then
      perform :"schema"._list_unfinished(v_row.scope, v_row.key, v_lease_end, p_on_lapse, p_max_attempts);
    else -- it is listed and keeps its tries
      perform :"schema"._note_policy(v_row.scope, v_row.key, p_on_lapse, p_max_attempts);
    end if;
  else
    -- Released without steps, or forgotten: a new operation in the old row.
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
      perform :"schema"._list_unfinished(v_row.scope, v_row.key, v_lease_end, p_on_lapse, p_max_attempts);
    elsif v_row.leased then
      perform :"schema"._unlist_unfinished(v_row.scope, v_row.key);
    end if;
  end if;
  token := v_token;
  attempt := v_attempt;
  recovered := coalesce(recovered, v_attempt > 1); -- from attempt 2 on, a repeated begin may be a recovery
end
$pgonce$;
