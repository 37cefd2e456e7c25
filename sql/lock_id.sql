-- The advisory lock of a key. A collision of two keys costs a needless wait or a false
-- `in_progress`, never a double: the primary key decides.
create or replace function :"schema".lock_id(scope text, key text) returns bigint
language sql immutable parallel safe
return hashtextextended(key collate "C", hashtextextended(scope collate "C", hashtextextended(:'schema', 0)));
