-- Switches the audit trail on: from now on, each transition of a key leaves a line in the table `audit`, for p_days_kept
-- whole days (1 to 366). Does nothing if it is on with the same days and nothing of it is missing. For the owner of the
-- tables. Waits up to 3 s for the lock of the keys' table (55P03).
create or replace function :"schema".audit_on(p_days_kept integer default 30) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set lock_timeout = '3s'
as $pgonce$
begin
  perform :"schema"._check_range('days_kept', p_days_kept, 1, 366);
  if :"schema".audit_days_kept() is distinct from p_days_kept or :"schema"._audit_lacks_trigger() then
    create or replace trigger audit_inserted after insert on :"schema".idempotency_keys
      referencing new table as new_rows for each statement execute function :"schema"._audit_inserted();
    -- The argument is the setting.
    execute format(
      'create or replace trigger audit_updated after update on %1$I.idempotency_keys for each row
         when (old.status is distinct from new.status or old.token is distinct from new.token
            or old.created_at is distinct from new.created_at or old.attempt is distinct from new.attempt
            or old.attempts_uncounted is distinct from new.attempts_uncounted
            or old.expires_at is distinct from new.expires_at
            or old.scope is distinct from new.scope or old.key is distinct from new.key
            or old.fingerprint is distinct from new.fingerprint or old.completed_at is distinct from new.completed_at
            or old.response_code is distinct from new.response_code
            or old.response_omitted is distinct from new.response_omitted
            or old.response_headers is distinct from new.response_headers
            or old.response_body is distinct from new.response_body)
         execute function %1$I._audit_updated(%2$L)', :'schema', p_days_kept);
    create or replace trigger audit_renamed after update of scope, key on :"schema".idempotency_keys for each row
      when (old.scope <> new.scope or old.key <> new.key) execute function :"schema"._audit_renamed();
    create or replace trigger audit_deleted after delete on :"schema".idempotency_keys
      referencing old table as old_rows for each statement execute function :"schema"._audit_deleted();
    create or replace trigger audit_truncated after truncate on :"schema".idempotency_keys
      for each statement execute function :"schema"._audit_truncated();
    create or replace trigger audit_refused before update or delete on :"schema".audit
      for each row execute function :"schema"._audit_refused();
  end if;
  perform :"schema"._keep_audit();
end
$pgonce$;
comment on function :"schema".audit_on is
  'Switches the audit trail on: each transition of a key leaves a line.';
