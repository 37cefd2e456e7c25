-- Returns how far one operation is, for callers that poll, without locking it: what `keys` shows, its finished steps in
-- order, its holder's last report, and the last error. No row if the key is unknown or forgotten; a corrupt row is
-- never forgotten. No outputs and no response: not every caller that polls may see them.
create or replace function :"schema".operation_status(p_scope text, p_key text)
returns table (
  status text, claim text, attempt integer, seen text, fingerprinted boolean,
  created_at timestamptz, completed_at timestamptz, lease_expires_at timestamptz, expires_at timestamptz,
  response_code integer, response_omitted boolean, steps text[], progress bytea, last_error text)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $pgonce$
declare
  v_at constant timestamptz := :"schema"._clock();
begin
  return query
  select v.status, v.claim, v.attempt, v.seen, v.fingerprinted,
         v.created_at, v.completed_at, v.lease_expires_at, v.expires_at, v.response_code, v.response_omitted,
         array(select s.name from :"schema".steps s
                where k.steps > 0 and s.scope = k.scope and s.key = k.key and s.begun_at = k.created_at
                order by s.number),
         k.progress, k.last_error
    from :"schema".keys v
    join :"schema".idempotency_keys k on k.scope = v.scope and k.key = v.key
   where k.scope = p_scope collate "C" and k.key = p_key collate "C"
     and (:"schema"._is_corrupt(k.status, k.expires_at, k.lease_expires_at)
          or not :"schema"._is_forgotten(k.status, k.expires_at, k.lease_expires_at, v_at));
end
$pgonce$;
comment on function :"schema".operation_status is
  'Returns how far one operation is, without its response, without locking it.';
