-- Returns one key as `keys` shows it, with the stored response, without locking it. No row if the key is unknown.
create or replace function :"schema".inspect_key(p_scope text, p_key text)
returns table (
  status text, claim text, attempt integer, seen text, fingerprinted boolean,
  created_at timestamptz, completed_at timestamptz, lease_expires_at timestamptz, expires_at timestamptz,
  response_code integer, response_omitted boolean, response_headers bytea, response_body bytea)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $pgonce$
begin
  return query
  select v.status, v.claim, v.attempt, v.seen, v.fingerprinted,
         v.created_at, v.completed_at, v.lease_expires_at, v.expires_at,
         v.response_code, v.response_omitted, k.response_headers, k.response_body
    from :"schema".keys v
    join :"schema".idempotency_keys k on k.scope = v.scope and k.key = v.key
   where k.scope = p_scope collate "C" and k.key = p_key collate "C";
end
$pgonce$;
comment on function :"schema".inspect_key is
  'Returns one key with its stored response, without locking it.';
