-- The keys that match, as rows of `keys`; for an auditor, of `audit_keys`. A null matches all.
create or replace function :"schema"._list_keys(
  p_scope text, p_key text, p_status text, p_claim text, p_count_max bigint)
returns setof :"schema".keys
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $pgonce$
begin
  return query execute format(
    'select k.* from %I.%I k
      where ($1 is null or k.scope = $1 collate "C") and ($2 is null or k.key = $2 collate "C")
        and ($3 is null or k.status = $3) and ($4 is null or k.claim = $4)
      order by k.scope, k.key limit $5',
    :'schema', case when :"schema"._is_auditor() then 'audit_keys' else 'keys' end)
  using p_scope, p_key, p_status, p_claim, p_count_max;
end
$pgonce$;
