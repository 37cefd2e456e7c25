-- Notes that a leased key is not finished; p_try_at is when a recovery may pick it. For begin and release.
create or replace function :"schema"._list_unfinished(p_scope text, p_key text, p_try_at timestamptz) returns void
language plpgsql volatile
as $pgonce$
begin
  insert into :"schema".unfinished (try_at, scope, key) values (p_try_at, p_scope, p_key)
  on conflict on constraint unfinished_pkey do update set try_at = excluded.try_at, tries = 0;
end
$pgonce$;

-- Takes a key off that list. For what finishes or frees it.
create or replace function :"schema"._unlist_unfinished(p_scope text, p_key text) returns void
language plpgsql volatile
as $pgonce$
begin
  delete from :"schema".unfinished u where u.scope = p_scope collate "C" and u.key = p_key collate "C";
end
$pgonce$;
