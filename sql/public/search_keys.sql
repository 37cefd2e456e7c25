-- Lists the keys of a scope in order, as `keys` shows them: those after p_after that begin with p_prefix and have the
-- status p_status; null matches all. Reads up to p_read_max keys (1 to 100000) through the primary key, and returns up
-- to p_count_max (1 to 1000). If there may be more, the last row has only a key and nulls: search on after that key.
create or replace function :"schema".search_keys(
  p_scope     text,
  p_prefix    text    default null,
  p_after     text    default null,
  p_status    text    default null,
  p_count_max integer default 100,
  p_read_max  integer default 10000)
returns table (
  key text, status text, claim text, attempt integer, seen text, fingerprinted boolean,
  created_at timestamptz, completed_at timestamptz, lease_expires_at timestamptz, expires_at timestamptz,
  response_code integer, response_omitted boolean)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
-- Reads the index in order, whatever the statistics say.
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set jit = off
as $pgonce$
declare
  v_row  record;
  v_read integer := 0;
  v_keys text[] := array[]::text[];
  v_last text;
begin
  perform :"schema"._check_range('count_max', p_count_max, 1, 1000);
  perform :"schema"._check_range('read_max', p_read_max, 1, 100000);
  for v_row in
    select k.key, :"schema"._status_word(k.status) as status from :"schema".idempotency_keys k
     where k.scope = p_scope collate "C" and k.key > coalesce(p_after, '') collate "C"
       and k.key >= coalesce(p_prefix, '') collate "C"
     order by k.key
  loop
    exit when not starts_with(v_row.key, coalesce(p_prefix, ''));
    if v_read = p_read_max or cardinality(v_keys) = p_count_max then
      key := v_last;
      exit;
    end if;
    v_read := v_read + 1;
    v_last := v_row.key;
    if p_status is null or v_row.status = p_status then
      v_keys := v_keys || v_row.key;
    end if;
  end loop;
  return query
  select v.key, v.status, v.claim, v.attempt, v.seen, v.fingerprinted, v.created_at, v.completed_at,
         v.lease_expires_at, v.expires_at, v.response_code, v.response_omitted
    from unnest(v_keys) with ordinality f(key, place)
   cross join lateral (
     select k.* from :"schema".keys k where k.scope = p_scope collate "C" and k.key = f.key collate "C" offset 0) v
   order by f.place;
  if key is not null then
    return next;
  end if;
end
$pgonce$;
comment on function :"schema".search_keys is
  'Lists the keys of a scope that begin with a prefix, in order, without reading others.';
