-- complete and fail: a compare-and-set on the token of a claim that is still in progress. Raises IK002 when the
-- claim is lost; the caller must roll back, nothing was written. Waits for a row lock of another transaction as
-- _bound_waits_by_caller says (55P03).
create or replace function :"schema"._finish(
  p_scope text, p_key text, p_token uuid, p_finished smallint, p_response_code integer, p_response_headers bytea,
  p_response_body bytea, p_omit boolean, p_response_bytes_max bigint)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $pgonce$
declare
  v_lock_timeout constant text := current_setting('lock_timeout');
  v_omitted constant boolean :=
    :"schema"._is_omitted(p_response_headers, p_response_body, p_omit, p_response_bytes_max);
  v_at constant timestamptz := :"schema"._clock();
  v_leased boolean;
  v_found  boolean;
begin
  perform :"schema"._bound_waits_by_caller();
  update :"schema".idempotency_keys k
     set status = p_finished, completed_at = v_at, response_code = p_response_code,
         response_headers = case when not v_omitted then p_response_headers end,
         response_body = case when not v_omitted then p_response_body end,
         response_omitted = v_omitted
   where k.scope = p_scope collate "C" and k.key = p_key collate "C" and k.token = p_token and k.status = 1
  returning k.leased into v_leased;
  v_found := found;
  if v_leased then
    perform :"schema"._unlist_unfinished(p_scope, p_key);
  end if;
  perform set_config('lock_timeout', v_lock_timeout, true);
  if not v_found then
    perform :"schema"._raise_claim_lost();
  end if;
end
$pgonce$;
