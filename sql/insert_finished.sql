-- Writes the row of a key that was opened with open_once, finished at once: the only write of its operation.
-- A plain insert, on purpose: a row that somebody else has written meanwhile raises (23505), and whatever is sent
-- behind this, such as COMMIT, is not done.
create or replace function :"schema".insert_finished(
  scope text, key text, fingerprint bytea, retention_ms bigint, finished text,
  response_code integer, response_headers bytea, response_body bytea, omit boolean, response_bytes_max bigint)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $pgonce$
#variable_conflict use_variable
declare
  omitted constant boolean := :"schema".omits(response_headers, response_body, omit, response_bytes_max);
  at      constant timestamptz := :"schema".clock();
begin
  insert into :"schema".idempotency_keys
    (created_at, expires_at, status, scope, key, fingerprint,
     response_code, response_headers, response_body, response_omitted)
  values (at, at + retention_ms * interval '1 millisecond',
          case finished when 'completed' then 2 when 'failed' then 3 end, scope, key, fingerprint, response_code,
          case when not omitted then response_headers end, case when not omitted then response_body end, omitted);
  -- A trigger or a rule may have swallowed it.
  if not found then
    raise exception 'the row was not written' using errcode = 'IK003';
  end if;
end
$pgonce$;
