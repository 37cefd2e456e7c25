-- Whether a response is stored as omitted: it is secret or too large. The key still blocks a second run.
create or replace function :"schema".omits(
  response_headers bytea, response_body bytea, omit boolean, response_bytes_max bigint)
returns boolean
language sql immutable parallel safe
return
  coalesce(omit, false)
  or coalesce(octet_length(response_headers), 0) + coalesce(octet_length(response_body), 0)
     > coalesce(response_bytes_max, 1048576);
