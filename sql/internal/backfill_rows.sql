-- Checks the rows of a backfill, and returns them as rows of idempotency_keys: finished operations, whose retention counts
-- from when they were completed. Arrays of one length; all but p_scopes, p_keys and p_completed_at may be null. A body
-- over 1 MiB is omitted, and so is a response of which nothing is given. Raises IK001, with the row's number, for a bad one.
create or replace function :"schema"._backfill_rows(
  p_scopes text[], p_keys text[], p_completed_at timestamptz[], p_failed boolean[], p_fingerprints bytea[],
  p_response_codes integer[], p_response_headers bytea[], p_response_bodies bytea[], p_retention_ms bigint)
returns table (
  scope text, key text, status smallint, created_at timestamptz, expires_at timestamptz, fingerprint bytea,
  response_code integer, response_headers bytea, response_body bytea, response_omitted boolean)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $pgonce$
declare
  v_count constant integer := cardinality(p_keys);
  v_at    constant timestamptz := :"schema"._clock();
begin
  perform :"schema"._check_range('the number of rows', v_count, 0, 10000);
  perform :"schema"._check_range('retention_ms', p_retention_ms, 1, 315576000000);
  if v_count is distinct from cardinality(p_scopes) or v_count is distinct from cardinality(p_completed_at)
    or v_count <> any (array[cardinality(p_failed), cardinality(p_fingerprints), cardinality(p_response_codes),
                             cardinality(p_response_headers), cardinality(p_response_bodies)]) then
    raise exception 'the arrays differ in length' using errcode = 'IK001';
  end if;
  perform :"schema"._check_name(format('the scope of row %s', r.place), r.scope),
          :"schema"._check_name(format('the key of row %s', r.place), r.key)
     from unnest(p_scopes, p_keys) with ordinality r(scope, key, place);
  perform :"schema"._check_fingerprint(format('the fingerprint of row %s', r.place), r.fingerprint)
     from unnest(p_fingerprints) with ordinality r(fingerprint, place);
  return query
  select r.scope, r.key, case when r.failed then 3 else 2 end::smallint,
         case when isfinite(r.completed_at) and r.completed_at <= v_at then r.completed_at
              else :"schema"._refuse_time(r.place) end,
         r.completed_at + p_retention_ms * interval '1 millisecond', r.fingerprint, r.response_code,
         case when octet_length(r.response_body) <= 1048576 or r.response_body is null then r.response_headers end,
         case when octet_length(r.response_body) <= 1048576 then r.response_body end,
         coalesce(octet_length(r.response_body) > 1048576, r.response_code is null and r.response_headers is null)
    from unnest(p_scopes, p_keys, p_completed_at, p_failed, p_fingerprints, p_response_codes, p_response_headers,
                p_response_bodies) with ordinality
         r(scope, key, completed_at, failed, fingerprint, response_code, response_headers, response_body, place);
end
$pgonce$;

create or replace function :"schema"._refuse_time(p_place bigint) returns timestamptz
language plpgsql volatile
as $pgonce$
begin
  raise exception 'completed_at of row % is null, infinite or in the future', p_place using errcode = 'IK001';
end
$pgonce$;

-- Returns times from microseconds since 1970.
create or replace function :"schema"._times(p_micros bigint[]) returns timestamptz[]
language sql immutable parallel safe
return array(select timestamptz 'epoch' + m.n * interval '1 microsecond'
               from unnest(p_micros) with ordinality m(n, place) order by m.place);
