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
  omitted constant boolean := :"schema".omits(response_headers, response_body, omit, response_bytes_max);
  leased boolean;
begin
  perform :"schema".lock_claim(scope, key, token);
  update :"schema".idempotency_keys k
     set status = finished, completed_at = :"schema".clock(), response_code = response_code,
         response_headers = case when not omitted then response_headers end,
         response_body = case when not omitted then response_body end,
         response_omitted = omitted
   where k.scope = scope collate "C" and k.key = key collate "C" and k.token = token and k.status = 1
  returning k.leased into leased;
  if not found then
    perform :"schema".claim_lost();
  elsif leased then
    delete from :"schema".unfinished u where u.scope = scope collate "C" and u.key = key collate "C";
  end if;
end
$pgonce$;
