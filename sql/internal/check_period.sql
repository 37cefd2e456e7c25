-- Raises IK001 unless both ends of a period are times.
create or replace function :"schema"._check_period(p_from timestamptz, p_until timestamptz) returns void
language plpgsql immutable parallel safe
as $pgonce$
begin
  if isfinite(p_from) is not true then
    raise exception 'from is null or infinite' using errcode = 'IK001';
  elsif isfinite(p_until) is not true then
    raise exception 'until is null or infinite' using errcode = 'IK001';
  end if;
end
$pgonce$;

-- Returns a sum of counts, at most what fits.
create or replace function :"schema"._total(p_sum numeric) returns bigint
language sql immutable parallel safe
return least(coalesce(p_sum, 0), 9223372036854775807)::bigint;
