-- Returns the rollout mode of each class that has one, and when and by whom it was set. Needs the right to read `rollout`.
create or replace function :"schema".rollout_modes()
returns table (class text, mode text, at timestamptz, role text, actor text)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $pgonce$
begin
  return query
  select l.class, l.mode, l.at, l.role, l.actor
    from (select distinct on (r.class) r.* from :"schema".rollout r order by r.class, r.id desc) l
   where l.mode is not null
   order by l.class;
end
$pgonce$;
comment on function :"schema".rollout_modes is
  'Returns the rollout mode of each class that has one.';
