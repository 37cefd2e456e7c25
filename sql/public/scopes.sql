-- Lists scopes in order, from the first after p_after on, all or those that begin with p_prefix: up to p_count_max (1 to
-- 1000). Jumps through the primary key from scope to scope, so that it reads a scope, not its keys. The counts stop at
-- p_keys_max + 1 (p_keys_max: 0 to 100000): a table that is not vacuumed is read row by row.
create or replace function :"schema".scopes(
  p_prefix    text    default null,
  p_after     text    default null,
  p_count_max integer default 50,
  p_keys_max  integer default 1000)
returns table (scope text, key_count bigint, unfinished_count bigint)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
-- Reads the index in order, whatever the statistics say.
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set jit = off
as $pgonce$
declare
  v_last text := coalesce(p_after, '');
begin
  perform :"schema"._check_range('count_max', p_count_max, 1, 1000);
  perform :"schema"._check_range('keys_max', p_keys_max, 0, 100000);
  for v_number in 1 .. p_count_max loop
    select k.scope into scope from :"schema".idempotency_keys k
     where k.scope > v_last collate "C" and k.scope >= coalesce(p_prefix, '') collate "C"
     order by k.scope limit 1;
    exit when not found or not starts_with(scope, coalesce(p_prefix, ''));
    v_last := scope;
    select count(*) into key_count
      from (select from :"schema".idempotency_keys k where k.scope = v_last collate "C" limit p_keys_max + 1) c;
    select count(*) into unfinished_count
      from (select from :"schema".unfinished u where u.scope = v_last collate "C" limit p_keys_max + 1) c;
    return next;
  end loop;
end
$pgonce$;
comment on function :"schema".scopes is
  'Lists scopes in order, with capped counts of their keys.';
