select user_id || '/payments' as scope, trim(key, '"') as key, created_at as completed_at,
       response_code, response_body,
       convert_to(E'pgonce headers 1\r\ncontent-type: application/json\r\n', 'UTF8') as response_headers
  from public.idempotency_keys
 where response_code is not null and octet_length(trim(key, '"')) between 1 and 255
