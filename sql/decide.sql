-- The decision table, as far as a row decides it: the answer, or null when there is no row or the
-- row may be written over. One place for begin's look before the lock and its look after it.
-- Parsed when it is made, as lock_id and can_open are: `run` looks with a plain statement in the caller's session,
-- whose search_path may lead to other operators.
create or replace function :"schema".decide(
  seen :"schema".idempotency_keys, at timestamptz, fingerprint bytea, on_lapse text, max_attempts integer)
returns text
language sql immutable parallel safe
return case
  when seen.status is null then null                                                       -- no row
  when seen.status = 1 and seen.token is null and coalesce(seen.steps, 0) = 0 then null    -- released
  when seen.expires_at <= at and not (seen.status = 1 and seen.lease_expires_at > at) then null -- forgotten
  -- Fingerprints compare only within one algorithm and secret: their first four bytes.
  when fingerprint <> seen.fingerprint
   and substr(fingerprint, 1, 4) = substr(seen.fingerprint, 1, 4) then 'mismatch'
  when seen.status in (2, 3) then 'replay'
  when seen.lease_expires_at > at then 'in_progress'
  when on_lapse = 'hold' and seen.token is not null
    or coalesce(seen.attempt, 1) - coalesce(seen.attempts_uncounted, 0) >= max_attempts then 'held'
end;
