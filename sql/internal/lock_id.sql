-- The advisory lock of a key. Two keys that share one cost a needless wait or a false in_progress, never a double:
-- the primary key decides.
create or replace function :"schema"._lock_id(p_scope text, p_key text) returns bigint
language sql immutable parallel safe
return hashtextextended(p_key collate "C", hashtextextended(p_scope collate "C", hashtextextended(:'schema', 0)));
