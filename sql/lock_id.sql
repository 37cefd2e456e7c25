-- The advisory lock of a key. A collision of two keys costs a needless wait or a false
-- `in_progress`, never a double: the primary key decides.
create or replace function :"schema".lock_id(scope text, key text) returns bigint
language sql immutable parallel safe
as $pgonce$
  select pg_catalog.hashtextextended(key collate "C", pg_catalog.hashtextextended(scope collate "C", pg_catalog.hashtextextended(:'schema', 0)))
$pgonce$;
