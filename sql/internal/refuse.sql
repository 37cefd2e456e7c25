-- Ends a statement with an error, from inside its list of values. IK004: another transaction has the key's lock. IK008:
-- the work ended the transaction begun for the key. Never returns; the error contains no value of the caller.
create or replace function :"schema"._refuse(p_sqlstate text) returns smallint
language plpgsql volatile
as $pgonce$
begin
  if p_sqlstate operator(pg_catalog.=) 'IK004' then
    raise exception 'the key is taken' using errcode = 'IK004';
  end if;
  raise exception 'the work ended the transaction that was begun for it; what it wrote before may be committed without its key'
    using errcode = 'IK008';
end
$pgonce$;
