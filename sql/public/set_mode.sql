-- Sets the rollout mode of a class: off, observe, optional or required; null: as its code says. Processes read it every
-- few seconds. Leaves a line with time, role and the setting pgonce.actor; see rollout_changes. Every role needs the right
-- to execute this function. p_class: 1 to 100 bytes without control characters.
create or replace function :"schema".set_mode(p_class text, p_mode text) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $pgonce$
begin
  perform :"schema"._check_class(p_class);
  if p_mode not in ('off', 'observe', 'optional', 'required') then
    raise exception 'mode takes off, observe, optional, required or null' using errcode = 'IK001';
  end if;
  -- Until the commit, so that of two changes the one that commits last counts.
  perform pg_advisory_xact_lock(hashtextextended(format('pgonce rollout %s %s', :'schema', p_class), 0));
  insert into :"schema".rollout (at, mode, class) values (:"schema"._clock(), p_mode, p_class);
end
$pgonce$;
comment on function :"schema".set_mode is
  'Sets the rollout mode of a class; null: as its code says.';
revoke all on function :"schema".set_mode(text, text) from public;
