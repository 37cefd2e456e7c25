-- The fingerprint of a request given as parts: a four-byte header (1 = SHA-256, no secret), then
-- the digest over every part with its length in front, so that ('ab', 'c') differs from ('a', 'bc').
-- The same bytes as `Fingerprint::parts` in Rust. Raises IK001 for a part that is null, which would
-- otherwise look like a part that is not there.
create or replace function :"schema".fingerprint(variadic parts bytea[]) returns bytea
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $pgonce$
#variable_conflict use_variable
declare
  part  bytea;
  input bytea := convert_to('pgonce', 'UTF8');
begin
  if parts is null then
    raise exception 'the parts of the fingerprint are null' using errcode = 'IK001';
  end if;
  foreach part in array parts loop
    if part is null then
      raise exception 'a part of the fingerprint is null' using errcode = 'IK001';
    end if;
    input := input || int8send(octet_length(part)) || part;
  end loop;
  return decode('01000000', 'hex') || sha256(input);
end
$pgonce$;
