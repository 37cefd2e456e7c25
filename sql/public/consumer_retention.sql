-- For how long a consumer remembers its messages: the retention that its newest one was stored with. Null: it has no
-- messages. Reads all of them.
create or replace function :"schema".consumer_retention(p_consumer text) returns interval
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $pgonce$
begin
  return (select k.expires_at - k.created_at from :"schema".idempotency_keys k
           where k.scope = p_consumer collate "C"
           order by k.created_at desc limit 1);
end
$pgonce$;
comment on function :"schema".consumer_retention is
  'For how long a consumer remembers its messages.';
