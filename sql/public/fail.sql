-- Like complete, with the response of a final failure, which is replayed like a success. Outside a transaction use
-- fail_leased. p_retention_ms: how long the failure is remembered from now on, if the key's retention does not end
-- sooner. Null: as long as the key.
create or replace function :"schema".fail(
  p_scope              text,
  p_key                text,
  p_token              uuid,
  p_response_code      integer default null,
  p_response_headers   bytea   default null,
  p_response_body      bytea   default null,
  p_omit               boolean default false,
  p_response_bytes_max bigint  default 1048576,
  p_retention_ms       bigint  default null)
returns void
language sql volatile
as $pgonce$
  select :"schema"._finish(p_scope, p_key, p_token, 3::smallint, p_response_code, p_response_headers, p_response_body,
                           p_omit, p_response_bytes_max, p_retention_ms)
$pgonce$;
comment on function :"schema".fail is
  'Finishes a claim with the response of a final failure, in the caller''s transaction. Replayed like a success.';
