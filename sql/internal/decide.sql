-- The decision table of the protocol, as far as a row decides it: the answer, or null when there is no row or when
-- the row may be overwritten. `corrupt` becomes an error. p_at is the clock, read after any wait.
create or replace function :"schema"._decide(
  p_row_status smallint, p_row_token uuid, p_row_fingerprint bytea, p_row_expires_at timestamptz,
  p_row_lease_expires_at timestamptz, p_row_steps integer, p_row_attempt integer, p_row_attempts_uncounted integer,
  p_at timestamptz, p_fingerprint bytea, p_token uuid, p_on_lapse text, p_max_attempts integer)
returns text
language sql immutable parallel safe
return case
  when p_row_status is null then null
  when :"schema"._is_corrupt(p_row_status, p_row_expires_at, p_row_lease_expires_at) then 'corrupt'
  when :"schema"._is_released(p_row_status, p_row_token) and coalesce(p_row_steps, 0) = 0 then null
  when :"schema"._is_forgotten(p_row_status, p_row_expires_at, p_row_lease_expires_at, p_at) then null
  -- Fingerprints compare only within one algorithm and secret: their first four bytes.
  when p_fingerprint <> p_row_fingerprint
   and substr(p_fingerprint, 1, 4) = substr(p_row_fingerprint, 1, 4) then 'mismatch'
  when p_row_status in (2, 3) then 'replay'
  -- The caller asks again, because the answer to its leased begin was lost.
  when p_row_token = p_token then 'started'
  when p_row_lease_expires_at > p_at then 'in_progress'
  when p_on_lapse = 'hold' and p_row_token is not null
    or coalesce(p_row_attempt, 1) - coalesce(p_row_attempts_uncounted, 0) >= p_max_attempts then 'held'
end;
