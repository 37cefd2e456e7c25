-- Everything about one key, without locking it: a row of `keys` and the stored response; no row
-- when the key is unknown.
create or replace function :"schema".inspect(scope text, key text)
returns table (
  status text, claim text, attempt integer, token uuid, fingerprinted boolean,
  created_at timestamptz, completed_at timestamptz, lease_expires_at timestamptz, expires_at timestamptz,
  response_code integer, response_omitted boolean, response_headers bytea, response_body bytea)
language sql volatile
set search_path = pg_catalog, pg_temp
as $pgonce$
  select v.status, v.claim, v.attempt, v.token, v.fingerprinted,
         v.created_at, v.completed_at, v.lease_expires_at, v.expires_at,
         v.response_code, v.response_omitted, k.response_headers, k.response_body
    from :"schema".keys v
    join :"schema".idempotency_keys k on k.scope = v.scope and k.key = v.key
   where k.scope = inspect.scope collate "C" and k.key = inspect.key collate "C"
$pgonce$;
