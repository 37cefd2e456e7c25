-- What complete and fail share: compare-and-set on the token of a claim that is still in progress.
-- Raises IK002 when the claim is lost; the caller must roll back, nothing was written.
create or replace function :"schema".finish(
  scope text, key text, token uuid, finished smallint,
  response_code integer, response_headers bytea, response_body bytea, omit boolean, response_bytes_max bigint)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $pgonce$
#variable_conflict use_variable
declare
  -- Too large or secret: the key still blocks a second run, only the content is not kept.
  omitted constant boolean := coalesce(omit, false)
    or coalesce(octet_length(response_headers), 0) + coalesce(octet_length(response_body), 0) > response_bytes_max;
begin
  perform pg_advisory_xact_lock(:"schema".lock_id(scope, key));
  update :"schema".idempotency_keys k
     set status = finished, completed_at = :"schema".clock(), response_code = response_code,
         response_headers = case when not omitted then response_headers end,
         response_body = case when not omitted then response_body end,
         response_omitted = omitted
   where k.scope = scope and k.key = key and k.token = token and k.status = 1;
  if not found then
    raise exception 'the claim is lost: released, taken over, finished or forgotten' using errcode = 'IK002';
  end if;
end
$pgonce$;
