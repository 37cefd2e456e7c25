-- Notes that a leased key is not finished, anew if it was noted before. For begin and release.
create or replace function :"schema".enlist(scope text, key text, try_at timestamptz) returns void
language sql volatile
as $pgonce$
  insert into :"schema".unfinished (try_at, scope, key) values (enlist.try_at, enlist.scope, enlist.key)
  on conflict on constraint unfinished_pkey do update set try_at = excluded.try_at, tries = 0
$pgonce$;
