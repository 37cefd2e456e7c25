-- Writes the row of a key that was opened with _open_once, finished at once: the only write of its operation.
-- A plain insert, on purpose: a row that another transaction has written meanwhile raises (23505), and whatever is
-- sent behind this, such as COMMIT, is not done. It pins no search_path, as _open_once.
create or replace function :"schema"._insert_finished(
  p_scope text, p_key text, p_fingerprint bytea, p_retention_ms bigint, p_finished text,
  p_response_code integer, p_response_headers bytea, p_response_body bytea, p_omit boolean, p_response_bytes_max bigint)
returns void
language plpgsql volatile
as $pgonce$
begin
  insert into :"schema".idempotency_keys
    (created_at, expires_at, status, scope, key, fingerprint,
     response_code, response_headers, response_body, response_omitted)
  select t.at, t.at operator(pg_catalog.+) (p_retention_ms operator(pg_catalog.*) interval '1 millisecond'),
         case when p_finished operator(pg_catalog.=) 'completed' then 2
              when p_finished operator(pg_catalog.=) 'failed' then 3 end,
         p_scope, p_key, p_fingerprint, p_response_code,
         case when not t.omitted then p_response_headers end, case when not t.omitted then p_response_body end, t.omitted
    from (select :"schema"._clock() as at,
                 :"schema"._is_omitted(p_response_headers, p_response_body, p_omit, p_response_bytes_max) as omitted
          offset 0) t;
  -- A trigger or a rule may have swallowed it.
  if not found then
    raise exception 'the row was not written' using errcode = 'IK003';
  end if;
end
$pgonce$;
