-- Records those messages as done that have no row, in the order of their ids, and returns them; null when one of
-- them is in a transaction that was still open at the deadline, and then none is recorded.
create or replace function :"schema".insert_received(
  consumer text, message_ids text[], retention_ms bigint, deadline timestamptz)
returns text[]
language plpgsql volatile
as $pgonce$
#variable_conflict use_variable
declare
  outer_timeout constant text := current_setting('lock_timeout');
  at constant timestamptz := :"schema".clock();
  forgotten_at constant timestamptz := at + retention_ms * interval '1 millisecond';
  inserted text[];
begin
  perform :"schema".bound_locks(deadline);
  with inserted as (
    insert into :"schema".idempotency_keys
      (created_at, expires_at, status, scope, key)
    select at, forgotten_at, 2, consumer, i.id
      from (select distinct m collate "C" as id from unnest(message_ids) m order by id) i
    on conflict on constraint idempotency_keys_pkey do nothing
    returning key)
  select coalesce(array_agg(i.key), '{}') into inserted from inserted i;
  perform set_config('lock_timeout', outer_timeout, true);
  return inserted;
exception when lock_not_available then
  return null;
end
$pgonce$;
