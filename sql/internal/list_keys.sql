-- Returns the matching keys as `keys` shows them, or `audit_keys` for an auditor. Null matches all.
create or replace function :"schema"._list_keys(
  p_scope text, p_key text, p_status text, p_claim text, p_count_max bigint)
returns table (
  scope text, key text, status text, claim text, attempt integer, seen text, fingerprinted boolean,
  created_at timestamptz, completed_at timestamptz, lease_expires_at timestamptz, expires_at timestamptz,
  response_code integer, response_omitted boolean)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $pgonce$
begin
  return query execute format(
    'select k.scope, k.key, k.status, k.claim, k.attempt, k.seen, k.fingerprinted, k.created_at, k.completed_at,
            k.lease_expires_at, k.expires_at, k.response_code, k.response_omitted
       from %I.%I k
      where ($1 is null or k.scope = $1 collate "C") and ($2 is null or k.key = $2 collate "C")
        and ($3 is null or k.status = $3) and ($4 is null or k.claim = $4)
      order by k.scope, k.key limit $5',
    :'schema', case when :"schema"._is_auditor() then 'audit_keys' else 'keys' end)
  using p_scope, p_key, p_status, p_claim, p_count_max;
end
$pgonce$;
