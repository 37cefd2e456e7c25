-- Returns for each text, given as UTF-8 bytes, whether the database's encoding can store it.
create or replace function :"schema"._holds(p_texts bytea[]) returns boolean[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $pgonce$
declare
  v_holds boolean[] := array[]::boolean[];
  v_text  bytea;
begin
  foreach v_text in array p_texts loop
    begin
      perform convert_from(v_text, 'UTF8');
      v_holds := v_holds || true;
    exception when untranslatable_character or character_not_in_repertoire then
      v_holds := v_holds || false;
    end;
  end loop;
  return v_holds;
end
$pgonce$;
