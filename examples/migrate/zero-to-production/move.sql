select user_id || '/payments' as scope, trim(idempotency_key, '"') as key, created_at as completed_at,
       response_status_code as response_code, response_body,
       convert_to(E'pgonce headers 1\r\n', 'UTF8') || coalesce((
         select string_agg(convert_to(lower(h.name) || ': ', 'UTF8') || h.value || '\x0d0a'::bytea, '' order by n)
           from unnest(response_headers) with ordinality h(name, value, n)
          where lower(h.name) in ('content-type', 'location')), '') as response_headers
  from idempotency
 where response_status_code is not null and octet_length(trim(idempotency_key, '"')) between 1 and 255
