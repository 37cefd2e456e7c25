-- Lists a leased key as unfinished, for begin and release; a recovery may pick it at p_try_at. p_on_lapse null: the
-- policy stays as it is listed. All functions here wait for a row lock as _bound_waits_by_caller says (55P03).
create or replace function :"schema"._list_unfinished(
  p_scope text, p_key text, p_try_at timestamptz, p_on_lapse text, p_max_attempts integer)
returns void
language plpgsql volatile
as $pgonce$
declare
  v_bound pg_catalog.text := :"schema"._bound_waits_by_caller();
begin
  insert into :"schema".unfinished as u (try_at, max_attempts, holds, scope, key)
  values (p_try_at, p_max_attempts, nullif(p_on_lapse operator(pg_catalog.=) 'hold', false), p_scope, p_key)
  on conflict (scope, key) do update
    set try_at = excluded.try_at, tries = 0,
        max_attempts = case when p_on_lapse is null then u.max_attempts else excluded.max_attempts end,
        holds = case when p_on_lapse is null then u.holds else excluded.holds end;
  v_bound := case when v_bound is not null then pg_catalog.set_config('lock_timeout', '0', true) end;
end
$pgonce$;

-- Notes the policy of a begin that takes over a listed key, if it is another one. The key keeps its tries.
create or replace function :"schema"._note_policy(p_scope text, p_key text, p_on_lapse text, p_max_attempts integer)
returns void
language plpgsql volatile
as $pgonce$
declare
  v_bound pg_catalog.text := :"schema"._bound_waits_by_caller();
  v_holds constant boolean := nullif(p_on_lapse operator(pg_catalog.=) 'hold', false);
begin
  update :"schema".unfinished u set max_attempts = p_max_attempts, holds = v_holds
   where u.scope operator(pg_catalog.=) p_scope collate pg_catalog."C"
     and u.key operator(pg_catalog.=) p_key collate pg_catalog."C"
     and not (u.max_attempts is not distinct from p_max_attempts and u.holds is not distinct from v_holds);
  v_bound := case when v_bound is not null then pg_catalog.set_config('lock_timeout', '0', true) end;
end
$pgonce$;

-- Takes a key off the list when it is finished or free.
create or replace function :"schema"._unlist_unfinished(p_scope text, p_key text) returns void
language plpgsql volatile
as $pgonce$
declare
  v_bound pg_catalog.text := :"schema"._bound_waits_by_caller();
begin
  delete from :"schema".unfinished u where u.scope operator(pg_catalog.=) p_scope collate pg_catalog."C"
    and u.key operator(pg_catalog.=) p_key collate pg_catalog."C";
  v_bound := case when v_bound is not null then pg_catalog.set_config('lock_timeout', '0', true) end;
end
$pgonce$;

-- Lets a recovery pick the key before its lease ends. If a recovery has tried the key, its pause stays.
create or replace function :"schema"._hasten_unfinished(p_scope text, p_key text, p_try_at timestamptz) returns void
language plpgsql volatile
as $pgonce$
declare
  v_bound pg_catalog.text := :"schema"._bound_waits_by_caller();
begin
  update :"schema".unfinished u set try_at = least(u.try_at, p_try_at)
   where u.scope operator(pg_catalog.=) p_scope collate pg_catalog."C"
    and u.key operator(pg_catalog.=) p_key collate pg_catalog."C" and u.tries operator(pg_catalog.=) 0
    and pg_catalog.isfinite(u.try_at);
  v_bound := case when v_bound is not null then pg_catalog.set_config('lock_timeout', '0', true) end;
end
$pgonce$;
