-- Writes the row of a new key, in progress. Null: another transaction has committed one since, so look again. The
-- primary key decides, also against writers that do not take the key's lock.
create or replace function :"schema"._insert_row(
  p_scope text, p_key text, p_fingerprint bytea, p_retention_ms bigint, p_token uuid, p_lease_ms bigint,
  p_at timestamptz,
  out token uuid)
language plpgsql volatile
as $pgonce$
begin
  insert into :"schema".idempotency_keys
    (created_at, expires_at, lease_expires_at, token, status, scope, key, fingerprint, leased)
  values (p_at, p_at + p_retention_ms * interval '1 millisecond',
          p_at + coalesce(p_lease_ms, p_retention_ms) * interval '1 millisecond',
          coalesce(p_token, gen_random_uuid()), 1, p_scope, p_key, p_fingerprint,
          nullif(p_lease_ms is not null, false))
  on conflict on constraint idempotency_keys_pkey do nothing
  returning idempotency_keys.token into token;
  if found and p_lease_ms is not null then
    perform :"schema"._list_unfinished(p_scope, p_key, p_at + p_lease_ms * interval '1 millisecond');
  end if;
end
$pgonce$;
