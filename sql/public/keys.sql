-- Two views for people, from one text: status as a word, no token, no response. `claim` says what an unfinished key
-- waits for: `live` (its holder), `lapsed` (the next begin takes it over, or an operator decides) or `released`. `seen`
-- is for operators' functions. `overdue`: the key is forgotten, and the reaper may delete it.
--   keys        has its reader's rights (security_invoker, PostgreSQL 15): row-level security applies. On 14, and after
--               a pg_upgrade from 14 until migrate runs, it shows all rows.
--   audit_keys  for auditors, has its owner's rights: its reader needs none on the table, and sees all rows, even those
--               that row-level security hides from others.
do $pgonce$
declare
  v_view text;
begin
  foreach v_view in array array['keys', 'audit_keys'] loop
    execute format('create or replace view %I.%I as', :'schema', v_view) || $view$
      select k.scope, k.key, :"schema"._status_word(k.status) as status, c.claim,
             coalesce(k.attempt, 1) as attempt,
             :"schema"._seen(k.status, k.token, k.attempt, k.created_at) as seen,
             k.fingerprint is not null as fingerprinted,
             k.created_at, case when k.status <> 1 then coalesce(k.completed_at, k.created_at) end as completed_at,
             coalesce(k.lease_expires_at, k.expires_at) as lease_expires_at, k.expires_at,
             k.response_code, k.response_omitted,
             octet_length(k.response_headers) as response_headers_bytes,
             octet_length(k.response_body) as response_body_bytes,
             :"schema"._is_forgotten(k.status, k.expires_at, k.lease_expires_at, t.at)
               and not :"schema"._is_corrupt(k.status, k.expires_at, k.lease_expires_at) as overdue
        from :"schema".idempotency_keys k
       cross join (select :"schema"._clock() as at offset 0) t
       cross join lateral (
         select :"schema"._claim_word(k.status, k.token, k.lease_expires_at, t.at) as claim) c
    $view$;
  end loop;
end
$pgonce$;
comment on view :"schema".keys is
  'Shows one row per key, with its status as a word, without tokens and responses.';
comment on view :"schema".audit_keys is
  'Shows the view keys to auditors: all rows, whatever row-level security says.';
