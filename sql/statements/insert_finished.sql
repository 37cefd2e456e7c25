-- Inserts the row of a new key, already finished: the operation's only write besides the work, and the statement that
-- decides. The caller commits only if exactly one row comes back, with its scope and key: a trigger may have dropped or
-- changed the row, and a pooler may have run another client's statement.
--
-- $1 scope, $2 key, $3 fingerprint, $4 retention in ms, $5 status, $6 to $8 the response, $9 whether it is omitted, $10
-- whether the call is optimistic: it has not looked, and waits at most 250 ms for a row in the way. $11 for a failure:
-- retention in ms from now, if it is shorter; else null. No row: another
-- transaction has written one. Raises IK008 if the work ended the transaction (BEGIN sets DEFERRABLE, which means
-- nothing else here), IK004 if another transaction has the key's lock.
insert into :"schema".idempotency_keys
  (scope, key, status, created_at, expires_at, fingerprint,
   response_code, response_headers, response_body, response_omitted)
values
  ($1, $2,
   case when pg_catalog.current_setting('transaction_deferrable') operator(pg_catalog.<>) 'on'
          then :"schema"._refuse('IK008')
        when $10 and pg_catalog.set_config('lock_timeout', '250ms', true) is null
          then null
        when not pg_catalog.pg_try_advisory_xact_lock(:"schema"._lock_id($1, $2))
          then :"schema"._refuse('IK004')
        else $5 end,
   :"schema"._transaction_start(),
   least(:"schema"._transaction_start() operator(pg_catalog.+) ($4 operator(pg_catalog.*) interval '1 millisecond'),
         :"schema"._clock() operator(pg_catalog.+) ($11 operator(pg_catalog.*) interval '1 millisecond')),
   $3, $6, $7, $8, $9)
on conflict (scope, key) do nothing
returning scope, key
