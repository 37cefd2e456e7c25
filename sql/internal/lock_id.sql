-- Returns the id of a key's advisory lock. Two keys with the same id risk a needless wait or a false in_progress, never
-- a second run: the primary key decides.
create or replace function :"schema"._lock_id(p_scope text, p_key text) returns bigint
language sql immutable parallel safe
return hashtextextended(p_key collate "C", hashtextextended(p_scope collate "C", hashtextextended(:'schema', 0)));
