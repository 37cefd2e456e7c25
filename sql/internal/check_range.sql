-- Raises IK001 unless p_lowest <= p_value <= p_highest. Null is outside.
create or replace function :"schema"._check_range(
  p_field text, p_value bigint, p_lowest bigint, p_highest bigint)
returns void
language plpgsql immutable parallel safe
as $pgonce$
begin
  if p_value is null or p_value operator(pg_catalog.<) p_lowest or p_value operator(pg_catalog.>) p_highest then
    raise exception '% is %; it takes % to %', p_field, coalesce(p_value::pg_catalog.text, 'null'), p_lowest, p_highest
      using errcode = 'IK001';
  end if;
end
$pgonce$;
