-- The first statement of a call, in the transaction begun for the key. $1 scope, $2 key, $3 fingerprint, $4 whether to
-- take the key's lock, $5 the call's random token.
--
-- found: the key has a row. answer: what the row decides; null if it may be overwritten. has_lock: without a row and
-- with $4, whether this transaction now has the key's lock. A row takes no lock, so replays do not wait for each other.
-- is_committed: a transaction in which this call looked before was committed, which only its work can have done. A
-- session setting shows it: COMMIT keeps the setting, ROLLBACK reverts it.
--
-- Lock and look are one statement, so that Citus sends both to the same node. The look is older than the lock; the
-- INSERT finds what commits in between. Names are qualified: the caller's search_path may lead to others.
select s.found, s.answer, s.status, s.response_code, s.response_headers, s.response_body, s.response_omitted,
       case when s.found is null and $4
            then pg_catalog.pg_try_advisory_xact_lock(:"schema"._lock_id($1, $2)) end as has_lock,
       case when pg_catalog.current_setting('pgonce.call', true) operator(pg_catalog.=) $5 then true
            else pg_catalog.set_config('pgonce.call', $5, false) is null end as is_committed,
       pg_catalog.current_setting('transaction_isolation') as isolation,
       pg_catalog.current_setting('transaction_read_only') operator(pg_catalog.=) 'on' as is_read_only,
       :"schema"._is_slow(pg_catalog.statement_timestamp()) as is_slow
  from (values (1)) one(row)
  left join (
    select true as found, :"schema"._status_word(k.status) as status,
           k.response_code, k.response_headers, k.response_body, k.response_omitted,
           :"schema"._decide(k.status, k.token, k.fingerprint, k.expires_at, k.lease_expires_at, k.steps, k.attempt,
                             k.attempts_uncounted, :"schema"._clock(), $3, null, 'retry', null) as answer
      from :"schema".idempotency_keys k
     where k.scope operator(pg_catalog.=) $1 and k.key operator(pg_catalog.=) $2) s on true
