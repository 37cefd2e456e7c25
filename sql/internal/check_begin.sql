-- Limits of begin's arguments, in milliseconds. Ranges include both ends.

-- Returns true for arguments like those of nearly every call. The planner inlines this expression; a call of
-- _check_begin costs 20 us. Otherwise _check_begin decides. A test compares the two.
create or replace function :"schema"._fits_begin(
  p_scope text, p_key text, p_fingerprint bytea, p_retention_ms bigint, p_lease_ms bigint, p_wait_ms bigint,
  p_on_lapse text, p_max_attempts integer)
returns boolean
language sql immutable parallel safe
return
  octet_length(p_scope) <= 255 and p_scope collate "C" ~ '^[!-~][ -~]*$'
  and octet_length(p_key) <= 255 and p_key collate "C" ~ '^[!-~][ -~]*$'
  and coalesce(octet_length(p_fingerprint), 36) = 36
  and p_retention_ms between 1 and 315576000000 -- ten years
  and coalesce(p_lease_ms, 1) between 1 and p_retention_ms
  and p_wait_ms between 0 and 3600000 -- one hour
  and p_on_lapse in ('retry', 'hold')
  and coalesce(p_max_attempts, 1) >= 1;

-- Raises IK001 for the first argument outside its limits.
create or replace function :"schema"._check_begin(
  p_scope text, p_key text, p_fingerprint bytea, p_retention_ms bigint, p_lease_ms bigint, p_wait_ms bigint,
  p_on_lapse text, p_max_attempts integer)
returns void
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $pgonce$
begin
  perform :"schema"._check_name('scope', p_scope);
  perform :"schema"._check_name('key', p_key);
  perform :"schema"._check_fingerprint('fingerprint', p_fingerprint);
  perform :"schema"._check_range('retention_ms', p_retention_ms, 1, 315576000000);
  if p_lease_ms is not null then
    perform :"schema"._check_range('lease_ms', p_lease_ms, 1, p_retention_ms);
  end if;
  perform :"schema"._check_range('wait_ms', p_wait_ms, 0, 3600000);
  if p_on_lapse is null or p_on_lapse not in ('retry', 'hold') then
    raise exception 'on_lapse takes retry or hold' using errcode = 'IK001';
  end if;
  if p_max_attempts is not null then
    perform :"schema"._check_range('max_attempts', p_max_attempts, 1, 2147483647);
  end if;
end
$pgonce$;
