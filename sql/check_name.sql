-- Raises unless `name` may be a scope or a key: 1 to 255 bytes, not blank, no control characters.
-- The message names the field and the limit, never the value. `Key::new` in Rust applies the same rule
-- before a connection is needed; a test holds the two together. E'' reads the same whatever
-- standard_conforming_strings says.
create or replace function :"schema".check_name(field text, name text) returns void
language plpgsql immutable parallel safe
as $pgonce$
#variable_conflict use_variable
begin
  -- Printable ASCII, which nearly every name is. What follows is for the others.
  if octet_length(name) between 1 and 255 and name collate "C" ~ '^[!-~][ -~]*$' then
    return;
  elsif name is null or name = '' then
    raise exception '% is empty; it takes 1 to 255 bytes', field using errcode = 'IK001';
  elsif octet_length(name) > 255 then
    raise exception '% has % bytes; the limit is 255', field, octet_length(name) using errcode = 'IK001';
  elsif name collate "C" ~ E'[\\u0001-\\u001f\\u007f-\\u009f]' then
    raise exception '% contains a control character', field using errcode = 'IK001';
  elsif name collate "C" ~ E'^[ \\u00a0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]*$' then
    raise exception '% is blank', field using errcode = 'IK001';
  end if;
end
$pgonce$;
