-- The fingerprint of a request given as parts: a four-byte header (1 = SHA-256, no secret), then
-- the digest over every part with its length in front, so that ('ab', 'c') differs from ('a', 'bc').
-- The same bytes as `Fingerprint::parts` in Rust.
create or replace function :"schema".fingerprint(variadic parts bytea[]) returns bytea
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $pgonce$
  select '\x01000000'::bytea || sha256(
    convert_to('pgonce', 'UTF8') || coalesce(string_agg(int8send(octet_length(part)) || part, ''::bytea order by place), ''))
  from unnest(parts) with ordinality as p (part, place)
$pgonce$;
