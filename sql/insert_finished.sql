-- Writes the row of a key that was opened with open_once, finished at once: the only write of its operation.
-- A plain insert, on purpose: a row that somebody else has written meanwhile raises (23505), and whatever is sent
-- behind this, such as COMMIT, is not done. It pins no search_path, as open_once.
create or replace function :"schema".insert_finished(
  scope text, key text, fingerprint bytea, retention_ms bigint, finished text,
  response_code integer, response_headers bytea, response_body bytea, omit boolean, response_bytes_max bigint)
returns void
language plpgsql volatile
as $pgonce$
#variable_conflict use_variable
begin
  insert into :"schema".idempotency_keys
    (created_at, expires_at, status, scope, key, fingerprint,
     response_code, response_headers, response_body, response_omitted)
  select t.at, t.at operator(pg_catalog.+) (retention_ms operator(pg_catalog.*) interval '1 millisecond'),
         case when finished operator(pg_catalog.=) 'completed' then 2
              when finished operator(pg_catalog.=) 'failed' then 3 end,
         scope, key, fingerprint, response_code,
         case when not t.omitted then response_headers end, case when not t.omitted then response_body end, t.omitted
    from (select :"schema".clock() as at,
                 :"schema".omits(response_headers, response_body, omit, response_bytes_max) as omitted offset 0) t;
  -- A trigger or a rule may have swallowed it.
  if not found then
    raise exception 'the row was not written' using errcode = 'IK003';
  end if;
end
$pgonce$;
