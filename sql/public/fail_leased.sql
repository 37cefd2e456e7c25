-- Like fail, for a leased claim without business writes. Commits. Refused inside a transaction (2D000).
create or replace procedure :"schema".fail_leased(
  p_scope              text,
  p_key                text,
  p_token              uuid,
  p_response_code      integer default null,
  p_response_headers   bytea   default null,
  p_response_body      bytea   default null,
  p_omit               boolean default false,
  p_response_bytes_max bigint  default 1048576,
  p_retention_ms       bigint  default null)
language plpgsql
as $pgonce$
begin
  commit;
  set transaction isolation level read committed;
  perform :"schema"._finish(p_scope, p_key, p_token, 3::smallint, p_response_code, p_response_headers, p_response_body,
                            p_omit, p_response_bytes_max, p_retention_ms);
  commit;
end
$pgonce$;
comment on procedure :"schema".fail_leased is
  'Finishes a leased claim with the response of a final failure, and commits. Replayed like a success.';
