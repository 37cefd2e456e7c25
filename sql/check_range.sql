-- Raises unless lowest <= value <= highest; null is outside.
create or replace function :"schema".check_range(field text, value bigint, lowest bigint, highest bigint)
returns void
language plpgsql immutable parallel safe
as $pgonce$
#variable_conflict use_variable
begin
  if value is null or value < lowest or value > highest then
    raise exception '% is %; it takes % to %', field, coalesce(value::text, 'null'), lowest, highest
      using errcode = 'IK001';
  end if;
end
$pgonce$;
