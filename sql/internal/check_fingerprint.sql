-- Raises IK001 unless p_fingerprint is null or has the length of a fingerprint.
create or replace function :"schema"._check_fingerprint(p_field text, p_fingerprint bytea) returns void
language plpgsql immutable parallel safe
as $pgonce$
begin
  if octet_length(p_fingerprint) <> 36 then
    raise exception '% has % bytes; it takes the 36 that %.fingerprint() makes',
      p_field, octet_length(p_fingerprint), :'schema' using errcode = 'IK001';
  end if;
end
$pgonce$;
