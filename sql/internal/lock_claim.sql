-- Locks the row of a claim for its holder. Raises IK002 when the claim is lost. Waits for a row lock of another
-- transaction as _bound_waits_by_caller says (55P03).
create or replace function :"schema"._lock_claim(p_scope text, p_key text, p_token uuid) returns void
language plpgsql volatile
as $pgonce$
declare
  v_lock_timeout constant text := current_setting('lock_timeout');
  v_found boolean;
begin
  perform :"schema"._bound_waits_by_caller();
  perform 1 from :"schema".idempotency_keys k
    where k.scope = p_scope collate "C" and k.key = p_key collate "C" and k.token = p_token and k.status = 1
    for no key update;
  v_found := found;
  perform set_config('lock_timeout', v_lock_timeout, true);
  if not v_found then
    perform :"schema"._raise_claim_lost();
  end if;
end
$pgonce$;
