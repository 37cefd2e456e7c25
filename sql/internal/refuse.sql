-- Ends a statement with an error of pgonce's own, from inside its list of values: IK004, the key is taken; IK008, the
-- transaction is not the one that was begun for the key. It returns nothing, and no value of a caller's is in its text.
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
