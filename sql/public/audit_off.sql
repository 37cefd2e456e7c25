-- Switches the audit trail off. Its lines stay, and reap no longer drops old ones. For the owner of the tables. Waits up
-- to 3 s for the lock of the keys' table (55P03).
create or replace function :"schema".audit_off() returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set lock_timeout = '3s'
as $pgonce$
declare
  v_name text;
begin
  for v_name in select t.name from :"schema"._audit_triggers() t loop
    execute format('drop trigger %I on %I.idempotency_keys', v_name, :'schema');
  end loop;
end
$pgonce$;
comment on function :"schema".audit_off is
  'Switches the audit trail off; its lines stay.';
