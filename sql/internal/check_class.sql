-- Raises IK001 unless p_class can be a class: 1 to 100 bytes, no control characters. Class::new in Rust applies the same
-- rule.
create or replace function :"schema"._check_class(p_class text) returns void
language plpgsql immutable parallel safe
as $pgonce$
begin
  perform :"schema"._check_name('class', p_class);
  if octet_length(p_class) > 100 then
    raise exception 'class is % bytes long; it takes 1 to 100 bytes', octet_length(p_class) using errcode = 'IK001';
  end if;
end
$pgonce$;
