-- The limits of begin's arguments, in one place. Units are milliseconds, ranges include both ends.

-- Whether they are like those that nearly every call passes. One expression, which is put in its place where it is
-- asked: a call of check_begin costs 20 us. Names are usual when they are printable ASCII.
create or replace function :"schema".fits_begin(
  scope text, key text, fingerprint bytea, retention_ms bigint, lease_ms bigint, wait_ms bigint,
  on_lapse text, max_attempts integer)
returns boolean
language sql immutable parallel safe
return
  octet_length(scope) <= 255 and scope collate "C" ~ '^[!-~][ -~]*$'
  and octet_length(key) <= 255 and key collate "C" ~ '^[!-~][ -~]*$'
  and coalesce(octet_length(fingerprint), 36) = 36
  and retention_ms between 1 and 315576000000 -- ten years
  and coalesce(lease_ms, 1) between 1 and retention_ms
  and wait_ms between 0 and 3600000 -- one hour
  and on_lapse in ('retry', 'hold')
  and coalesce(max_attempts, 1) >= 1;

-- Raises unless they are within the limits. For those that fits_begin does not vouch for, to say what is wrong.
create or replace function :"schema".check_begin(
  scope text, key text, fingerprint bytea, retention_ms bigint, lease_ms bigint, wait_ms bigint,
  on_lapse text, max_attempts integer)
returns void
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $pgonce$
#variable_conflict use_variable
begin
  perform :"schema".check_name('scope', scope);
  perform :"schema".check_name('key', key);
  if octet_length(fingerprint) <> 36 then
    raise exception 'fingerprint has % bytes; it takes the 36 that %.fingerprint() makes',
      octet_length(fingerprint), :'schema' using errcode = 'IK001';
  end if;
  perform :"schema".check_range('retention_ms', retention_ms, 1, 315576000000);
  if lease_ms is not null then
    perform :"schema".check_range('lease_ms', lease_ms, 1, retention_ms);
  end if;
  perform :"schema".check_range('wait_ms', wait_ms, 0, 3600000);
  if on_lapse is null or on_lapse not in ('retry', 'hold') then
    raise exception 'on_lapse takes retry or hold' using errcode = 'IK001';
  end if;
  if max_attempts is not null then
    perform :"schema".check_range('max_attempts', max_attempts, 1, 2147483647);
  end if;
end
$pgonce$;
