-- Asks for the right to perform an operation in the caller's transaction. Answers, never raises them as errors:
--   started      the caller holds the claim: write, then complete or fail with this token, then commit. recovered: it
--                goes on with what an earlier attempt has begun under a lease
--   replay       it is done: status says `completed` or `failed`, response_* hold what was stored
--   in_progress  another claim is alive; lease_remaining_ms is null when it is an open transaction
--   mismatch     the key belongs to a request with another fingerprint
--   held         the last claim lapsed and an operator must decide; held_because: lapsed or attempts
--
-- p_wait_ms: how long to wait for another open transaction that works on the same key: 0 to 3600000. A wait
-- that would outlast statement_timeout ends shortly before it, with an answer. A transaction that has written already
-- does not wait, because it could deadlock with the key's holder: begin first, then write.
-- p_on_lapse: what to do with a leased claim that has lapsed: `retry` takes it over, `hold` answers held.
-- p_lock_replay: a replay takes a row lock, so that its commit waits for a synchronous standby.
--
-- Rows and locks: `started` writes one row version and keeps the key's advisory lock until the transaction ends.
-- Every other answer writes nothing and keeps no lock (p_lock_replay apart). Raises IK001 (bad argument), IK003
-- (corrupt row), IK005 (too many keys begun in this transaction); 40001 or 40P01 mean: run the transaction again.
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
language sql volatile
as $pgonce$
  select b.answer, b.token, b.attempt, b.lease_remaining_ms, b.held_because, b.status, b.response_code,
         b.response_headers, b.response_body, b.response_omitted, b.recovered
    from :"schema"._begin(p_scope, p_key, p_fingerprint, p_retention_ms, null, null, p_wait_ms, p_on_lapse,
                          p_max_attempts, p_lock_replay, false) b
$pgonce$;
comment on function :"schema".begin_operation is
  'Asks for the right to perform an operation in the caller''s transaction: started, replay, in_progress, mismatch or held.';
