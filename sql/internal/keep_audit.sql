-- Returns the partition of a day, in UTC; null if there is none.
create or replace function :"schema"._audit_partition(p_day date) returns regclass
language sql stable
return to_regclass(format('%I.%I', :'schema', 'audit_' || to_char(p_day::timestamp, 'YYYYMMDD')));

-- Deletes all lines of a partition, unless its lock is taken.
create or replace function :"schema"._empty_partition(p_name text) returns void
language plpgsql volatile
as $pgonce$
begin
  execute format('truncate %I.%I', :'schema', p_name);
exception when lock_not_available then
  null;
end
$pgonce$;

-- Makes the partitions of today and the next seven days, and drops those whose days are over. With the owner's rights,
-- because reap calls it. Waits only briefly for a lock; what it cannot do now, a later reap does.
create or replace function :"schema"._keep_audit() returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '50ms'
set timezone = 'UTC'
set datestyle = 'ISO'
as $pgonce$
declare
  v_days_kept constant integer := :"schema".audit_days_kept();
  v_today     constant date := :"schema"._clock()::date;
  v_day   date;
  v_name  text;
begin
  if v_days_kept is null
    or not pg_try_advisory_xact_lock(hashtextextended('pgonce audit ' || :'schema', 0)) then
    return;
  end if;
  -- Once a day.
  if :"schema"._audit_partition(v_today + 7) is null then
    for v_day in select v_today + n from generate_series(0, 7) n where :"schema"._audit_partition(v_today + n) is null
    loop
      v_name := 'audit_' || to_char(v_day::timestamp, 'YYYYMMDD');
      begin
        -- Made and then attached: `partition of` would wait for all transactions that have written a line.
        execute format('create table %1$I.%2$I (like %1$I.audit including all)', :'schema', v_name);
        execute format('alter table %1$I.audit attach partition %1$I.%2$I for values from (%3$L) to (%4$L)',
                       :'schema', v_name, v_day::timestamptz, (v_day + 1)::timestamptz);
      exception when lock_not_available or check_violation then
        null; -- a check: lines of this day are in audit_default
      end;
    end loop;
    if exists (select from :"schema".audit_default)
      and not exists (select from :"schema".audit_default d where d.at >= (v_today - v_days_kept)::timestamptz) then
      perform :"schema"._empty_partition('audit_default');
    end if;
  end if;
  for v_name in
    select c.relname::text from pg_inherits i join pg_class c on c.oid = i.inhrelid
     where i.inhparent = to_regclass(':"schema".audit') and c.relname ~ '^audit_[0-9]{8}$'
       and c.relname < 'audit_' || to_char((v_today - v_days_kept)::timestamp, 'YYYYMMDD')
  loop
    -- Emptying takes only the day's own lock. The drop takes the whole trail's, and gives up if a transaction that has
    -- written a line stays open.
    perform :"schema"._empty_partition(v_name);
    begin
      execute format('drop table %I.%I', :'schema', v_name);
    exception when lock_not_available then
      null;
    end;
  end loop;
end
$pgonce$;
