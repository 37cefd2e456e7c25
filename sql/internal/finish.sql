-- Implements complete and fail: a compare-and-set on the token of a claim in progress. Raises IK002 if the claim is
-- lost: nothing was written, the caller must roll back. Waits for a row lock as _bound_waits_by_caller says (55P03).
-- Every write passes here, so it pins no search_path and is flat: each expression costs a microsecond or two.
-- p_retention_ms: the key is forgotten this long from now, if not sooner. A key with steps keeps its retention: its next
-- begin would repeat them.
create or replace function :"schema"._finish(
  p_scope text, p_key text, p_token uuid, p_finished smallint, p_response_code integer, p_response_headers bytea,
  p_response_body bytea, p_omit boolean, p_response_bytes_max bigint, p_retention_ms bigint default null)
returns void
language plpgsql volatile
as $pgonce$
declare
  v_at constant pg_catalog.timestamptz := :"schema"._clock();
  v_omitted constant boolean :=
    :"schema"._is_omitted(p_response_headers, p_response_body, p_omit, p_response_bytes_max);
  v_bound pg_catalog.text := :"schema"._bound_waits_by_caller();
  v_forgotten_at constant pg_catalog.timestamptz :=
    v_at operator(pg_catalog.+) (p_retention_ms operator(pg_catalog.*) interval '1 millisecond');
  v_leased boolean;
begin
  if p_retention_ms is not null then
    perform :"schema"._check_range('retention_ms', p_retention_ms, 1, 315576000000);
  end if;
  update :"schema".idempotency_keys k
     set status = p_finished, completed_at = v_at, response_code = p_response_code,
         response_headers = case when not v_omitted then p_response_headers end,
         response_body = case when not v_omitted then p_response_body end,
         response_omitted = v_omitted,
         expires_at = least(k.expires_at, case when k.steps is null then v_forgotten_at end)
   where k.scope operator(pg_catalog.=) p_scope collate pg_catalog."C"
     and k.key operator(pg_catalog.=) p_key collate pg_catalog."C"
     and k.token operator(pg_catalog.=) p_token and k.status operator(pg_catalog.=) 1
  returning coalesce(k.leased, false) into v_leased;
  if :"schema"._is_slow(v_at) then
    discard plans;
  end if;
  if v_leased is not false then
    if v_leased is null then
      perform :"schema"._raise_claim_lost();
    end if;
    perform :"schema"._unlist_unfinished(p_scope, p_key);
  end if;
  v_bound := case when v_bound is not null then pg_catalog.set_config('lock_timeout', '0', true) end;
end
$pgonce$;
