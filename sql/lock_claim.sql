-- Takes the key's advisory lock for the holder of a claim, so that all writers of a key queue in one
-- place. Raises IK002 at once when it would have to wait for a claim that is not there to be seen: it is
-- lost, or this is not the connection whose open transaction holds it. Waits up to lock_timeout, or five
-- seconds where none is set (55P03): behind somebody's forgotten transaction there is no end to wait for.
create or replace function :"schema".lock_claim(scope text, key text, token uuid) returns void
language plpgsql volatile
as $pgonce$
#variable_conflict use_variable
declare
  outer_timeout constant text := current_setting('lock_timeout');
begin
  if not pg_try_advisory_xact_lock(:"schema".lock_id(scope, key)) then
    if not exists (select from :"schema".idempotency_keys k
                    where k.scope = scope collate "C" and k.key = key collate "C" and k.token = token) then
      perform :"schema".claim_lost();
    end if;
    if outer_timeout = '0' then
      perform set_config('lock_timeout', '5s', true);
    end if;
    perform pg_advisory_xact_lock(:"schema".lock_id(scope, key));
    perform set_config('lock_timeout', outer_timeout, true);
  end if;
end
$pgonce$;
