-- The protocol's decision table. Returns what a row decides; null if there is no row or begin may overwrite it. begin
-- raises `corrupt` as an error. p_at is the clock, read after any wait. plpgsql, because a SQL function would be
-- planned in every call: callers read the clock in its arguments. Pins no search_path, so every comparison is in a
-- function whose operators were resolved when it was created.
create or replace function :"schema"._decide(
  p_row_status smallint, p_row_token uuid, p_row_fingerprint bytea, p_row_expires_at timestamptz,
  p_row_lease_expires_at timestamptz, p_row_steps integer, p_row_attempt integer, p_row_attempts_uncounted integer,
  p_at timestamptz, p_fingerprint bytea, p_token uuid, p_on_lapse text, p_max_attempts integer)
returns text
language plpgsql immutable parallel safe
as $pgonce$
begin
  if p_row_status is null then
    return null;
  elsif :"schema"._is_corrupt(p_row_status, p_row_expires_at, p_row_lease_expires_at) then
    return 'corrupt';
  elsif :"schema"._is_free(p_row_status, p_row_token, p_row_steps)
     or :"schema"._is_forgotten(p_row_status, p_row_expires_at, p_row_lease_expires_at, p_at) then
    return null;
  elsif :"schema"._is_mismatch(p_fingerprint, p_row_fingerprint) then
    return 'mismatch';
  elsif :"schema"._is_finished(p_row_status) then
    return 'replay';
  elsif :"schema"._is_same(p_row_token, p_token) then
    return 'started'; -- repeats a leased begin whose answer was lost
  elsif :"schema"._is_leased_at(p_row_lease_expires_at, p_at) then
    return 'in_progress';
  elsif :"schema"._is_held(p_row_token, p_row_attempt, p_row_attempts_uncounted, p_on_lapse, p_max_attempts) then
    return 'held';
  end if;
  return null;
end
$pgonce$;
