-- Returns the fingerprint of a request given as parts: a four-byte header (1 = SHA-256, no secret), then a digest of
-- every part with its length in front, so that ('ab', 'c') differs from ('a', 'bc'). Fingerprint::parts in Rust returns
-- the same bytes. Raises IK001 for a null part, which would make the fingerprint null.
create or replace function :"schema".fingerprint(variadic p_parts bytea[]) returns bytea
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $pgonce$
declare
  v_part  bytea;
  v_input bytea := convert_to('pgonce', 'UTF8');
begin
  if p_parts is null then
    raise exception 'the parts of the fingerprint are null' using errcode = 'IK001';
  end if;
  foreach v_part in array p_parts loop
    if v_part is null then
      raise exception 'a part of the fingerprint is null' using errcode = 'IK001';
    end if;
    v_input := v_input || int8send(octet_length(v_part)) || v_part;
  end loop;
  return decode('01000000', 'hex') || sha256(v_input);
end
$pgonce$;
comment on function :"schema".fingerprint is
  'Returns the fingerprint of a request given as parts.';
