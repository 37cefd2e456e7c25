-- Raises IK003, for a row with a value that pgonce never writes.
create or replace function :"schema"._raise_corrupt() returns void
language plpgsql volatile parallel safe
as $pgonce$
begin
  raise exception 'the stored row has a status or a time that pgonce never writes' using errcode = 'IK003';
end
$pgonce$;
