-- Returns the last p_limit changes (1 to 10000) of a class's rollout mode, oldest first. mode null: as its code says. Needs
-- the right to read `rollout`.
create or replace function :"schema".rollout_changes(p_class text, p_limit integer default 100)
returns table (class text, mode text, at timestamptz, role text, actor text)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $pgonce$
begin
  perform :"schema"._check_range('limit', p_limit, 1, 10000);
  return query
  select l.class, l.mode, l.at, l.role, l.actor
    from (select r.* from :"schema".rollout r where r.class = p_class collate "C" order by r.id desc limit p_limit) l
   order by l.id;
end
$pgonce$;
comment on function :"schema".rollout_changes is
  'Returns who changed the rollout mode of a class, and when.';
