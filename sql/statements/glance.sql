-- The look that `run` takes first, as one plain statement: what is called in it is inlined when it is planned (which
-- takes a clock that is read before), so that it costs little more than a select by the key. answer is a replay's;
-- is_free tells, where there is no row, whether another transaction works on the key; without either, begin decides.
-- $1 scope, $2 key, $3 fingerprint. Operators are qualified: the caller's search_path may lead to others.
select d.answer, :"schema"._status_word(k.status) as status,
       k.response_code, k.response_headers, k.response_body, k.response_omitted,
       case when k.status is null and :"schema"._can_open()
            then pg_catalog.pg_try_advisory_xact_lock_shared(:"schema"._lock_id($1, $2)) end as is_free
  from (select :"schema"._clock() as at offset 0) t
  left join :"schema".idempotency_keys k
    on k.scope operator(pg_catalog.=) $1 collate pg_catalog."C" and k.key operator(pg_catalog.=) $2 collate pg_catalog."C"
 cross join lateral (
   select :"schema"._decide(k.status, k.token, k.fingerprint, k.expires_at, k.lease_expires_at, k.steps, k.attempt,
                            k.attempts_uncounted, t.at, $3, null, 'retry', null) as answer) d
