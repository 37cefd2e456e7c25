-- Notes that a leased key is not finished, anew if it was noted before. For begin and release.
create or replace function :"schema".enlist(scope text, key text, try_at timestamptz) returns void
language plpgsql volatile
as $pgonce$
#variable_conflict use_variable
begin
  insert into :"schema".unfinished (try_at, scope, key) values (try_at, scope, key)
  on conflict on constraint unfinished_pkey do update set try_at = excluded.try_at, tries = 0;
end
$pgonce$;
