-- The table for people: status in words, no response content. `claim` says what an unfinished key
-- is waiting for: `live`, `lapsed` (the next begin takes it over, or an operator decides) or `released`.
create or replace view :"schema".keys as
select k.scope, k.key,
       case k.status when 1 then 'in_progress' when 2 then 'completed' when 3 then 'failed' else 'corrupt' end as status,
       case when k.status <> 1 then null
            when k.token is null then 'released'
            when k.lease_expires_at > :"schema".clock() then 'live'
            else 'lapsed' end as claim,
       coalesce(k.attempt, 1) as attempt, k.token, k.fingerprint is not null as fingerprinted,
       k.created_at, case when k.status <> 1 then coalesce(k.completed_at, k.created_at) end as completed_at,
       coalesce(k.lease_expires_at, k.expires_at) as lease_expires_at, k.expires_at,
       k.response_code, k.response_omitted,
       octet_length(k.response_headers) as response_headers_bytes,
       octet_length(k.response_body) as response_body_bytes
  from :"schema".idempotency_keys k;
