-- Asks for the right to perform an operation. Answers, never raises them as errors:
--   started      the caller holds the claim; finish it with complete, fail or release and this token
--   replay       it is done: status says `completed` or `failed`, response_* hold what was stored
--   in_progress  another claim is alive; lease_remaining_ms is null when it is an open transaction
--   mismatch     the key belongs to a request with another fingerprint
--   held         the last claim lapsed and an operator must decide; held_because: lapsed or attempts
--
-- lease_ms null: transactional. The claim lives and dies with the caller's transaction.
-- lease_ms given: leased. Commit before the work starts; the claim lapses after the lease.
-- wait_ms: how long to wait for another open transaction that works on the same key.
-- on_lapse: what to do with a lapsed claim: `retry` takes it over, `hold` answers held.
-- lock_replay: a replay takes a row lock, so that its commit waits for a synchronous standby.
--
-- Rows and locks: a replay, in_progress, mismatch or held writes nothing and leaves no lock that
-- delays a replay. Otherwise the transaction keeps the key's advisory lock and one new row version.
-- Raises IK001 (bad argument), IK003 (corrupt row); 40001 or 40P01 mean: run the transaction again.
create or replace function :"schema".begin(
  scope        text,
  key          text,
  fingerprint  bytea   default null,
  retention_ms bigint  default 86400000,
  lease_ms     bigint  default null,
  wait_ms      bigint  default 0,
  on_lapse     text    default 'retry',
  max_attempts integer default null,
  lock_replay  boolean default false,
  out answer             text,
  out token              uuid,
  out attempt            integer,
  out lease_remaining_ms bigint,
  out held_because       text,
  out status             text,
  out response_code      integer,
  out response_headers   bytea,
  out response_body      bytea,
  out response_omitted   boolean)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $pgonce$
#variable_conflict use_variable
-- A bare name is a parameter; a column is always written k.column.
declare
  lock_id  constant bigint := :"schema".lock_id(scope, key);
  deadline timestamptz;
  locked   boolean := false;
  at       timestamptz;
  seen     record;
begin
  perform :"schema".check_begin(scope, key, fingerprint, retention_ms, lease_ms, wait_ms, on_lapse, max_attempts);
  deadline := clock_timestamp() + wait_ms * interval '1 millisecond';

  -- A row that vanishes or changes between two looks means: look again. The bound is for a row that
  -- stands in the way of the insert and yet is not there to be seen.
  for look in 1 .. 100 loop
    select k.status, k.token, k.attempt, k.fingerprint, k.expires_at, k.lease_expires_at,
           k.response_code, k.response_headers, k.response_body, k.response_omitted
      into seen
      from :"schema".idempotency_keys k
     where k.scope = scope and k.key = key;
    at := :"schema".clock(); -- after every wait, never before

    if seen.status is not null then
      if seen.status not in (1, 2, 3) or not isfinite(seen.expires_at) or not isfinite(seen.lease_expires_at) then
        raise exception 'the stored row has a status or a time that pgonce never writes' using errcode = 'IK003';
      end if;
      answer := case
        when seen.status = 1 and seen.token is null then null                               -- released
        when seen.expires_at <= at and not (seen.status = 1 and seen.lease_expires_at > at) then null -- forgotten
        -- Fingerprints compare only within one algorithm and secret: their first four bytes.
        when fingerprint <> seen.fingerprint and substr(fingerprint, 1, 4) = substr(seen.fingerprint, 1, 4) then 'mismatch'
        when seen.status in (2, 3) then 'replay'
        when seen.lease_expires_at > at then 'in_progress'
        when on_lapse = 'hold' or seen.attempt >= max_attempts then 'held'
      end;

      if answer = 'replay' then
        if lock_replay then
          perform 1 from :"schema".idempotency_keys k
            where k.scope = scope and k.key = key and k.token = seen.token for key share;
          continue when not found;
        end if;
        status := case seen.status when 2 then 'completed' else 'failed' end;
        response_code := seen.response_code;
        response_headers := seen.response_headers;
        response_body := seen.response_body;
        response_omitted := seen.response_omitted;
      elsif answer = 'in_progress' then
        lease_remaining_ms := ceil(extract(epoch from seen.lease_expires_at - at) * 1000);
      elsif answer = 'held' then
        held_because := case on_lapse when 'hold' then 'lapsed' else 'attempts' end;
      end if;
      if answer is not null then
        attempt := seen.attempt;
        return;
      end if;
    end if;

    -- Nothing decides yet, so the right to write is needed. Trying the lock costs no row version
    -- and no queue; the look that follows is a statement of its own, because a snapshot taken
    -- before the lock would miss what its last holder committed.
    if not locked then
      locked := pg_try_advisory_xact_lock(lock_id);
      if locked then
        continue;
      end if;
      case :"schema".wait_for_lock(lock_id, scope, key, deadline)
        when 'locked' then locked := true; continue;
        when 'finished' then continue;
        else answer := 'in_progress'; return;
      end case;
    end if;

    if seen.status is null then
      -- Waits for a writer that does not take the lock, if there is one, and then looks again.
      token := gen_random_uuid();
      attempt := 1;
      insert into :"schema".idempotency_keys
        (created_at, expires_at, lease_expires_at, token, attempt, status, scope, key, fingerprint)
      values (at, at + retention_ms * interval '1 millisecond',
              at + coalesce(lease_ms, retention_ms) * interval '1 millisecond',
              token, attempt, 1, scope, key, fingerprint)
      on conflict on constraint idempotency_keys_pkey do nothing;
    else
      -- Lock the row exactly as seen, then read the clock: a lease counted before the wait for a
      -- row lock would start in the past.
      perform 1 from :"schema".idempotency_keys k
        where k.scope = scope and k.key = key and k.status = seen.status
          and k.token is not distinct from seen.token
          and k.expires_at = seen.expires_at and k.lease_expires_at = seen.lease_expires_at
        for no key update;
      continue when not found;
      at := :"schema".clock();
      token := gen_random_uuid();
      if seen.status = 1 and seen.token is not null and seen.expires_at > at then
        -- Lapsed: the same operation goes on. Its retention still counts from the first begin.
        attempt := seen.attempt + 1;
        update :"schema".idempotency_keys k
           set token = token, attempt = attempt, fingerprint = coalesce(k.fingerprint, fingerprint),
               lease_expires_at = coalesce(at + lease_ms * interval '1 millisecond', k.expires_at)
         where k.scope = scope and k.key = key;
      else
        -- Released or forgotten: a new operation in the old row.
        attempt := case when seen.expires_at > at then seen.attempt + 1 else 1 end;
        update :"schema".idempotency_keys k
           set created_at = at, expires_at = at + retention_ms * interval '1 millisecond',
               lease_expires_at = at + coalesce(lease_ms, retention_ms) * interval '1 millisecond',
               completed_at = null, token = token, attempt = attempt, status = 1, fingerprint = fingerprint,
               response_code = null, response_headers = null, response_body = null, response_omitted = false
         where k.scope = scope and k.key = key;
      end if;
    end if;
    if found then
      answer := 'started';
      return;
    end if;
  end loop;
  raise exception 'the key is there but cannot be read or written; is there a row-level security policy?'
    using errcode = 'IK003';
end
$pgonce$;
