-- Returns how long a consumer remembers its messages: the retention of its newest message that has not failed for good.
-- Null: it has none. Reads all of them.
create or replace function :"schema".consumer_retention(p_consumer text) returns interval
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $pgonce$
declare
  v_retention interval;
  v_audits constant boolean := :"schema"._is_auditor();
begin
  -- A failure may have a shorter retention.
  execute format(
    'select k.expires_at - k.created_at from %I.%I k where k.scope = $1 collate "C" and k.status <> %s
      order by k.created_at desc limit 1',
    :'schema', case when v_audits then 'audit_keys' else 'idempotency_keys' end,
    case when v_audits then '''failed''' else '3' end)
    into v_retention using p_consumer;
  return v_retention;
end
$pgonce$;
comment on function :"schema".consumer_retention is
  'Returns how long a consumer remembers its messages.';
