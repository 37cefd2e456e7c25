-- Asks for the right to perform an operation in the caller's transaction. The answers are not errors:
--   started      the caller holds the claim: write, complete or fail with this token, commit. recovered: this
--                continues an earlier attempt
--   replay       finished: status is `completed` or `failed`, response_* the stored response
--   in_progress  another claim is live; lease_remaining_ms is null if it is an open transaction
--   mismatch     the key belongs to a request with another fingerprint
--   held         an operator must decide; held_because: lapsed or attempts
--
-- p_wait_ms: how long to wait for another open transaction with the same key, 0 to 3600000. A wait that would outlast
-- statement_timeout ends shortly before it, with an answer. A transaction that has written does not wait, because it
-- could deadlock with the key's holder: begin first, then write. A locked row can take 250 ms in any case.
-- p_on_lapse: `retry` takes over a lapsed leased claim, `hold` answers held.
-- p_lock_replay: a replay locks its row, so that the caller's commit waits for a synchronous standby.
--
-- Rows and locks: `started` writes one row version and keeps the key's advisory lock until the transaction ends. Other
-- answers write nothing and keep no lock (p_lock_replay apart). Raises IK001 (bad argument), IK003 (corrupt row), IK005
-- (too many keys begun in this transaction). On 40001 or 40P01, run the transaction again.
create or replace function :"schema".begin_operation(
  p_scope        text,
  p_key          text,
  p_fingerprint  bytea   default null,
  p_retention_ms bigint  default 86400000,
  p_wait_ms      bigint  default 0,
  p_on_lapse     text    default 'retry',
  p_max_attempts integer default null,
  p_lock_replay  boolean default false,
  out answer             text,
  out token              uuid,
  out attempt            integer,
  out lease_remaining_ms bigint,
  out held_because       text,
  out status             text,
  out response_code      integer,
  out response_headers   bytea,
  out response_body      bytea,
  out response_omitted   boolean,
  out recovered          boolean)
language plpgsql volatile
as $pgonce$
-- Decides the usual cases, a key without a row and a finished key, flat and without pinning search_path: each call and
-- each pinned setting costs as much as a statement. _begin decides every case.
declare
  v_at constant pg_catalog.timestamptz := :"schema"._clock();
  v_lock_timeout pg_catalog.text := pg_catalog.current_setting('lock_timeout');
begin
  if :"schema"._fits_begin(p_scope, p_key, p_fingerprint, p_retention_ms, null, p_wait_ms, p_on_lapse, p_max_attempts) then
    select :"schema"._decide(k.status, k.token, k.fingerprint, k.expires_at, k.lease_expires_at, k.steps, k.attempt,
                             k.attempts_uncounted, v_at, p_fingerprint, null, p_on_lapse, p_max_attempts),
           coalesce(k.attempt, 1), :"schema"._status_word(k.status),
           k.response_code, k.response_headers, k.response_body, k.response_omitted
      into answer, attempt, status, response_code, response_headers, response_body, response_omitted
      from :"schema".idempotency_keys k
     where k.scope operator(pg_catalog.=) p_scope collate pg_catalog."C"
       and k.key operator(pg_catalog.=) p_key collate pg_catalog."C";
    if :"schema"._is_slow(v_at) then
      discard plans;
    end if;
    if found and answer operator(pg_catalog.=) 'replay' and p_lock_replay is not true then
      return;
    elsif not found then
      -- A subtransaction: gives the lock back, and ends a wait with an answer. Under the key's lock, only `receive` or
      -- a begin since the look can be in the way; the primary key decides.
      begin
        insert into :"schema".idempotency_keys as k
          (created_at, expires_at, lease_expires_at, token, scope, key, fingerprint, status)
        values (v_at, v_at operator(pg_catalog.+) (p_retention_ms operator(pg_catalog.*) interval '1 millisecond'),
                v_at operator(pg_catalog.+) (p_retention_ms operator(pg_catalog.*) interval '1 millisecond'),
                pg_catalog.gen_random_uuid(), p_scope, p_key, p_fingerprint,
                case when :"schema"._bound_waits_briefly() is null then null
                     when not pg_catalog.pg_try_advisory_xact_lock(:"schema"._lock_id(p_scope, p_key))
                       then :"schema"._refuse('IK004')
                     else 1 end)
        on conflict (scope, key) do nothing
        returning 'started', k.token, 1, false into answer, token, attempt, recovered;
        if answer is null then
          raise exception 'look again' using errcode = 'IK004';
        end if;
        v_lock_timeout := pg_catalog.set_config('lock_timeout', v_lock_timeout, true);
        return;
      exception
        when sqlstate 'IK004' then
          null;
        when lock_not_available then
          p_wait_ms := p_wait_ms operator(pg_catalog.-) 250; -- already waited
          if p_wait_ms operator(pg_catalog.<=) 0 then
            answer := 'in_progress';
            return;
          end if;
        when out_of_memory then
          perform :"schema"._check_locks();
          raise;
      end;
    end if;
  end if;
  select b.answer, b.token, b.attempt, b.lease_remaining_ms, b.held_because, b.status, b.response_code,
         b.response_headers, b.response_body, b.response_omitted, b.recovered
    into answer, token, attempt, lease_remaining_ms, held_because, status, response_code,
         response_headers, response_body, response_omitted, recovered
    from :"schema"._begin(p_scope, p_key, p_fingerprint, p_retention_ms, null, null, p_wait_ms, p_on_lapse,
                          p_max_attempts, p_lock_replay) b;
end
$pgonce$;
comment on function :"schema".begin_operation is
  'Begins an operation in the caller''s transaction. Answers started, replay, in_progress, mismatch or held.';
