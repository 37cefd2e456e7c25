-- Locks the row of a claim for its holder. Raises IK002 if the claim is lost. Waits for a row lock as
-- _bound_waits_by_caller says (55P03).
create or replace function :"schema"._lock_claim(p_scope text, p_key text, p_token uuid) returns void
language plpgsql volatile
as $pgonce$
declare
  v_bound pg_catalog.text := :"schema"._bound_waits_by_caller();
begin
  perform 1 from :"schema".idempotency_keys k
    where k.scope operator(pg_catalog.=) p_scope collate pg_catalog."C"
      and k.key operator(pg_catalog.=) p_key collate pg_catalog."C"
      and k.token operator(pg_catalog.=) p_token and k.status operator(pg_catalog.=) 1
    for no key update;
  if not found then
    perform :"schema"._raise_claim_lost();
  end if;
  v_bound := case when v_bound is not null then pg_catalog.set_config('lock_timeout', '0', true) end;
end
$pgonce$;
