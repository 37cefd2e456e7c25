-- For how long a consumer remembers its messages: what its newest one was stored with. Null: it has none.
-- Reads all of its messages.
create or replace function :"schema".remembers(consumer text) returns interval
language sql volatile
set search_path = pg_catalog, pg_temp
as $pgonce$
  select k.expires_at - k.created_at from :"schema".idempotency_keys k
   where k.scope = remembers.consumer collate "C"
   order by k.created_at desc limit 1
$pgonce$;
