-- Records the messages without a row as done, in the order of their ids, and returns these ids. Null: one of them was
-- in a transaction still open at the deadline; none is recorded. The bound is at least 10 ms, because it also limits
-- the wait for a page at the end of the table.
create or replace function :"schema"._insert_received(
  p_consumer text, p_message_ids text[], p_retention_ms bigint, p_deadline timestamptz)
returns text[]
language plpgsql volatile
as $pgonce$
declare
  v_lock_timeout constant text := current_setting('lock_timeout');
  v_at constant timestamptz := :"schema"._clock();
  v_expires_at constant timestamptz := v_at + p_retention_ms * interval '1 millisecond';
  v_inserted text[];
begin
  perform :"schema"._bound_waits(p_deadline, 10);
  with inserted as (
    insert into :"schema".idempotency_keys
      (created_at, expires_at, status, scope, key)
    select v_at, v_expires_at, 2, p_consumer, i.id
      from (select distinct m collate "C" as id from unnest(p_message_ids) m order by id) i
    on conflict (scope, key) do nothing
    returning key)
  select coalesce(array_agg(i.key), '{}') into v_inserted from inserted i;
  perform set_config('lock_timeout', v_lock_timeout, true);
  return v_inserted;
exception when lock_not_available then
  return null;
end
$pgonce$;

-- Returns whether receive must stop trying blocked messages.
create or replace function :"schema"._is_over(p_deadline timestamptz) returns boolean
language sql volatile
return clock_timestamp() > p_deadline + interval '1 second'
    or coalesce(:"schema"._statement_left() < interval '0', false);

-- Like _insert_received, but if messages may be in other open transactions, halves the batch until each is alone, for
-- at most a second beyond the deadline; the rest counts as blocked. p_message_ids are distinct, sorted and tried in
-- this order, so that a transaction never waits for an id before one that it has recorded.
create or replace function :"schema"._receive_new(
  p_consumer text, p_message_ids text[], p_retention_ms bigint, p_deadline timestamptz)
returns text[]
language plpgsql volatile
as $pgonce$
declare
  v_count constant integer := cardinality(p_message_ids);
  v_half constant integer := v_count / 2;
  v_inserted constant text[] := :"schema"._insert_received(p_consumer, p_message_ids, p_retention_ms, p_deadline);
begin
  if v_inserted is not null then
    return v_inserted;
  elsif v_count = 1 or :"schema"._is_over(p_deadline) then
    return array[]::text[];
  end if;
  return :"schema"._receive_new(p_consumer, p_message_ids[1:v_half], p_retention_ms, p_deadline)
      || :"schema"._receive_new(p_consumer, p_message_ids[v_half + 1:], p_retention_ms, p_deadline);
end
$pgonce$;
