-- How far one operation is, for those who poll, without locking it: what `keys` says of it, the names of the
-- steps that are done, in their order, and what its holder has said. No row when the key is unknown or
-- forgotten. No outputs and no response: whoever asks how far it is need not be allowed to see them.
create or replace function :"schema".status(scope text, key text)
returns table (
  status text, claim text, attempt integer, token uuid, fingerprinted boolean,
  created_at timestamptz, completed_at timestamptz, lease_expires_at timestamptz, expires_at timestamptz,
  response_code integer, response_omitted boolean, steps text[], progress bytea, last_error text)
language sql volatile
set search_path = pg_catalog, pg_temp
as $pgonce$
  select v.status, v.claim, v.attempt, v.token, v.fingerprinted,
         v.created_at, v.completed_at, v.lease_expires_at, v.expires_at, v.response_code, v.response_omitted,
         array(select s.name from :"schema".steps s
                where k.steps > 0 and s.scope = k.scope and s.key = k.key and s.begun_at = k.created_at
                order by s.number),
         k.progress, k.last_error
    from :"schema".keys v
    join :"schema".idempotency_keys k on k.scope = v.scope and k.key = v.key
   where k.scope = status.scope collate "C" and k.key = status.key collate "C"
     and (v.expires_at > :"schema".clock() or v.claim = 'live')
$pgonce$;
