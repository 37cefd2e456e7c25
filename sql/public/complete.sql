-- Finishes a claim with the response of a success, in the caller's transaction, together with its writes. Raises IK002
-- if the claim is lost; the caller must then roll back. Stores no headers and body if p_omit is set, or if they are
-- longer than p_response_bytes_max together. Waits for a row lock up to lock_timeout, or five seconds if none is set
-- (55P03). Outside a transaction use complete_leased.
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
