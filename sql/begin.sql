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
-- ask_only: for use outside of a transaction. Nothing is written and no lock outlives the call; `started` has no
-- token, and only says what begin would. attempt is 1 when open_once may be tried, and null otherwise.
--
-- Rows and locks: `started` writes one row version (leased: also one in `unfinished`) and keeps the key's advisory
-- lock until the transaction ends. Every other answer writes nothing and keeps no lock (lock_replay apart).
-- Raises IK001 (bad argument), IK003 (corrupt row), IK005 (too many keys begun in this transaction); 40001 or 40P01 mean: run the transaction again.
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
  ask_only     boolean default false,
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
  at       timestamptz;
  seen     :"schema".idempotency_keys;
begin
  if :"schema".fits_begin(scope, key, fingerprint, retention_ms, lease_ms, wait_ms, on_lapse, max_attempts) is not true then
    perform :"schema".check_begin(scope, key, fingerprint, retention_ms, lease_ms, wait_ms, on_lapse, max_attempts);
  end if;
  deadline := clock_timestamp() + wait_ms * interval '1 millisecond';

  -- A row that vanishes or changes between two looks means: look again. The bound is for a row that
  -- stands in the way of the insert and yet is not there to be seen.
  for look in 1 .. 100 loop
    seen := :"schema".look(scope, key);
    at := :"schema".clock(); -- after every wait, never before
    answer := :"schema".decide(seen, at, fingerprint, on_lapse, max_attempts);

    if answer is null then
      -- Nothing decides yet, so the right to write is needed. This block is a subtransaction: leaving
      -- it by an error gives the locks back, so that whoever does not write keeps nobody waiting.
      begin
        perform :"schema".take_lock(lock_id, deadline, ask_only);
        -- The insert below needs room for one more lock, for a moment, and cannot tell why there is none. So see here.
        if pg_try_advisory_lock_shared(~lock_id) then
          perform pg_advisory_unlock_shared(~lock_id);
        end if;
        -- A look of its own: a snapshot taken before the lock would miss what its last holder committed.
        seen := :"schema".look(scope, key);
        at := :"schema".clock();
        answer := :"schema".decide(seen, at, fingerprint, on_lapse, max_attempts);
        if answer is not null then
          raise exception 'give the locks back' using errcode = 'IK000';
        elsif ask_only then
          answer := 'started';
          attempt := case when seen.status is null and :"schema".can_open() then 1 end;
          return;
        elsif seen.status is not null then
          select w.token, w.attempt into token, attempt
            from :"schema".write_over(seen, fingerprint, retention_ms, lease_ms, deadline) w;
          answer := 'started';
          return;
        end if;
      exception
        when sqlstate 'IK000' then
          continue when answer is null;
        when lock_not_available then
          answer := 'in_progress'; -- in another open transaction: there is no lease to tell
          return;
        when out_of_memory then
          perform :"schema".check_locks();
          raise;
      end;
    end if;

    if answer = 'replay' then
      if lock_replay then
        begin
          if not :"schema".lock_replay(scope, key, seen.token, deadline) then
            answer := null;
          end if;
        exception when lock_not_available then
          answer := 'in_progress';
          return;
        end;
        continue when answer is null;
      end if;
      status := case seen.status when 2 then 'completed' else 'failed' end;
      response_code := seen.response_code;
      response_headers := seen.response_headers;
      response_body := seen.response_body;
      response_omitted := seen.response_omitted;
    elsif answer = 'in_progress' then
      lease_remaining_ms := ceil(extract(epoch from seen.lease_expires_at - at) * 1000);
    elsif answer = 'held' then
      held_because := case when on_lapse = 'hold' and seen.token is not null then 'lapsed' else 'attempts' end;
    end if;
    if answer is not null then
      attempt := coalesce(seen.attempt, 1);
      return;
    end if;

    -- The insert stays outside of the block above: in a subtransaction it would cost a second
    -- transaction id. The primary key decides against writers that take no lock.
    insert into :"schema".idempotency_keys
      (created_at, expires_at, lease_expires_at, token, status, scope, key, fingerprint, leased)
    values (at, at + retention_ms * interval '1 millisecond',
            at + coalesce(lease_ms, retention_ms) * interval '1 millisecond',
            gen_random_uuid(), 1, scope, key, fingerprint, nullif(lease_ms is not null, false))
    on conflict on constraint idempotency_keys_pkey do nothing
    returning idempotency_keys.token into token;
    if found then
      attempt := 1;
      if lease_ms is not null then
        perform :"schema".enlist(scope, key, at + lease_ms * interval '1 millisecond');
      end if;
      answer := 'started';
      return;
    end if;
  end loop;
  raise exception 'the key is there but cannot be read or written; is there a row-level security policy?'
    using errcode = 'IK003';
end
$pgonce$;
