-- The triggers of the audit trail on the keys' table, and whether each fires. None: the trail is off.
create or replace function :"schema"._audit_triggers() returns table (name text, fires boolean)
language sql stable
set search_path = pg_catalog, pg_temp
as $pgonce$
  select t.tgname::text, t.tgenabled in ('O', 'A') from pg_trigger t
   where t.tgrelid = to_regclass(':"schema".idempotency_keys')
     and t.tgname in ('audit_inserted', 'audit_updated', 'audit_renamed', 'audit_deleted', 'audit_truncated')
$pgonce$;

-- Returns for how many whole days the audit trail is kept: the argument of its trigger. Null: it is off.
create or replace function :"schema".audit_days_kept() returns integer
language sql stable
return (select convert_from(substr(t.tgargs, 1, octet_length(t.tgargs) - 1), 'UTF8')::integer from pg_trigger t
         where t.tgrelid = to_regclass(':"schema".idempotency_keys') and t.tgname = 'audit_updated');
comment on function :"schema".audit_days_kept is
  'Returns for how many days the audit trail is kept; null if it is off.';

create or replace function :"schema"._audit_lacks_trigger() returns boolean
language sql stable
return (select count(*) filter (where t.fires) < 5 from :"schema"._audit_triggers() t)
    or not exists (select from pg_trigger t
                    where t.tgrelid = to_regclass(':"schema".audit') and t.tgname = 'audit_refused'
                      and t.tgenabled in ('O', 'A'));

-- Returns what is wrong with the audit trail, for check; null if nothing is, or if it is off.
create or replace function :"schema"._audit_problem() returns text
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $pgonce$
declare
  v_today constant date := :"schema"._clock()::date;
begin
  if not exists (select from :"schema"._audit_triggers()) then
    return null;
  elsif :"schema"._audit_lacks_trigger() then
    return format('the audit trail is on, but one of its triggers is disabled or missing, so transitions leave no '
                  'lines: run select %I.audit_on(%s)', :'schema', coalesce(:"schema".audit_days_kept(), 30));
  elsif :"schema"._audit_partition(v_today) is null or :"schema"._audit_partition(v_today + 1) is null then
    return 'the audit trail has no partition for today or tomorrow, because no reaper ran: run a Reaper or pgonce reap';
  end if;
  return null;
end
$pgonce$;
