-- Returns whether a response is stored as omitted, on request or because of its size. The key still blocks a second
-- run.
create or replace function :"schema"._is_omitted(
  p_response_headers bytea, p_response_body bytea, p_omit boolean, p_response_bytes_max bigint)
returns boolean
language sql immutable parallel safe
return
  coalesce(p_omit, false)
  or coalesce(octet_length(p_response_headers), 0) + coalesce(octet_length(p_response_body), 0)
     > coalesce(p_response_bytes_max, 1048576);
