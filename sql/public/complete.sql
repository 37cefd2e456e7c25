-- Finishes a claim with the response of a success, in the caller's transaction, together with what it wrote. Raises
-- IK002 when the claim is lost; the caller must roll back then. A response that is marked p_omit, or whose headers and
-- body are longer than p_response_bytes_max together, is stored without them. Waits for another transaction's lock on
-- the row up to lock_timeout, or five seconds where none is set (55P03). Outside of a transaction use complete_leased.
create or replace function :"schema".complete(
  p_scope              text,
  p_key                text,
  p_token              uuid,
  p_response_code      integer default null,
  p_response_headers   bytea   default null,
  p_response_body      bytea   default null,
  p_omit               boolean default false,
  p_response_bytes_max bigint  default 1048576)
returns void
language sql volatile
as $pgonce$
  select :"schema"._finish(p_scope, p_key, p_token, 2::smallint, p_response_code, p_response_headers, p_response_body,
                           p_omit, p_response_bytes_max)
$pgonce$;
comment on function :"schema".complete is
  'Finishes a claim with the response of a success, in the caller''s transaction.';
