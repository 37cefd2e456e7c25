-- Finishes a claim with the response of a final failure; it is replayed like a success. Raises IK002 when the claim is lost.
-- A response that is marked `omit`, or whose headers and body are longer than response_bytes_max,
-- is stored without them.
create or replace function :"schema".fail(
  scope              text,
  key                text,
  token              uuid,
  response_code      integer default null,
  response_headers   bytea   default null,
  response_body      bytea   default null,
  omit               boolean default false,
  response_bytes_max bigint  default 1048576)
returns void
language sql volatile
as $pgonce$
  select :"schema".finish(scope, key, token, 3::smallint, response_code, response_headers, response_body,
                          omit, response_bytes_max)
$pgonce$;
