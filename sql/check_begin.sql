-- The limits of begin's arguments, in one place. Units are milliseconds, ranges include both ends.
create or replace function :"schema".check_begin(
  scope text, key text, fingerprint bytea, retention_ms bigint, lease_ms bigint, wait_ms bigint,
  on_lapse text, max_attempts integer)
returns void
language plpgsql immutable parallel safe
as $pgonce$
#variable_conflict use_variable
declare
  retention_max constant bigint := 315576000000; -- ten years
  wait_max      constant bigint := 3600000; -- one hour
begin
  perform :"schema".check_name('scope', scope);
  perform :"schema".check_name('key', key);
  -- One expression for what nearly every call passes. What follows is for the others, to say what is wrong.
  if retention_ms between 1 and retention_max and wait_ms between 0 and wait_max and on_lapse in ('retry', 'hold')
    and coalesce(lease_ms, 1) between 1 and retention_ms and coalesce(max_attempts, 1) >= 1
    and coalesce(octet_length(fingerprint), 36) = 36 then
    return;
  elsif octet_length(fingerprint) <> 36 then
    raise exception 'fingerprint has % bytes; it takes the 36 that %.fingerprint() makes',
      octet_length(fingerprint), :'schema' using errcode = 'IK001';
  end if;
  perform :"schema".check_range('retention_ms', retention_ms, 1, retention_max);
  if lease_ms is not null then
    perform :"schema".check_range('lease_ms', lease_ms, 1, retention_ms);
  end if;
  perform :"schema".check_range('wait_ms', wait_ms, 0, wait_max);
  if max_attempts is not null then
    perform :"schema".check_range('max_attempts', max_attempts, 1, 2147483647);
  end if;
  raise exception 'on_lapse takes retry or hold' using errcode = 'IK001';
end
$pgonce$;
