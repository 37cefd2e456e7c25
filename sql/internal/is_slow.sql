-- Whether what began then, at the time of _clock(), has taken so long that its plan may be one for a small table: a
-- session that planned a look when the table was new keeps reading all of it while it grows, until statistics are
-- gathered. `discard plans` makes the session plan anew.
create or replace function :"schema"._is_slow(p_since timestamptz) returns boolean
language sql volatile
return clock_timestamp() > p_since + interval '10 milliseconds';
