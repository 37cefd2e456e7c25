-- Returns whether the caller is an auditor: may read audit_keys but not the table.
create or replace function :"schema"._is_auditor() returns boolean
language sql stable
return has_table_privilege(':"schema".audit_keys', 'select')
   and not has_table_privilege(':"schema".idempotency_keys', 'select');

-- Returns the view of keys that the caller may read.
create or replace function :"schema"._keys_to_read() returns text
language sql stable
return case when :"schema"._is_auditor() then 'audit_keys' else 'keys' end;
