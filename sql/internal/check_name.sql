-- Raises IK001 unless p_name can be a scope or key: 1 to 255 bytes, not blank, no control characters. The message names
-- the field and the limit, never the value. Key::new in Rust applies the same rule without a connection; a test
-- compares the two. Encodings other than UTF8 have letters where Unicode has C1 control characters and rare blanks;
-- they skip those two checks. E'' reads the same under every standard_conforming_strings.
create or replace function :"schema"._check_name(p_field text, p_name text) returns void
language plpgsql immutable parallel safe
as $pgonce$
begin
  -- Printable ASCII, as nearly every name is. The checks below are for the rest.
  if octet_length(p_name) between 1 and 255 and p_name collate "C" ~ '^[!-~][ -~]*$' then
    return;
  elsif p_name is null or p_name = '' then
    raise exception '% is empty; it takes 1 to 255 bytes', p_field using errcode = 'IK001';
  elsif octet_length(p_name) > 255 then
    raise exception '% has % bytes; the limit is 255', p_field, octet_length(p_name) using errcode = 'IK001';
  elsif p_name collate "C" ~ E'[\\u0001-\\u001f\\u007f]'
    or getdatabaseencoding() = 'UTF8' and p_name collate "C" ~ E'[\\u0080-\\u009f]' then
    raise exception '% contains a control character', p_field using errcode = 'IK001';
  elsif p_name collate "C" ~ '^ *$' or getdatabaseencoding() = 'UTF8'
    and p_name collate "C" ~ E'^[ \\u00a0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]*$' then
    raise exception '% is blank', p_field using errcode = 'IK001';
  end if;
end
$pgonce$;
