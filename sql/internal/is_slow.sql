-- Returns whether a statement that began at p_since is so slow that its plan may be for a small table. A session that
-- planned a look when the table was new reads the whole growing table until statistics are gathered. `discard plans`
-- makes it plan again.
create or replace function :"schema"._is_slow(p_since timestamptz) returns boolean
language sql volatile
return clock_timestamp() > p_since + interval '10 milliseconds';
