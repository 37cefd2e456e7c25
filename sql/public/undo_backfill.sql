-- Undoes a backfill of the same rows: deletes the keys that are still exactly as backfill wrote them. Keys that something
-- else has touched, or wrote, stay. p_dry_run: only counts and locks them. Returns how many were deleted, and how many
-- stay. Waits at most 250 ms for a transaction that has a row locked (55P03: call it again).
create or replace function :"schema".undo_backfill(
  p_scopes           text[],
  p_keys             text[],
  p_completed_at     timestamptz[],
  p_retention_ms     bigint,
  p_failed           boolean[] default null,
  p_fingerprints     bytea[]   default null,
  p_response_codes   integer[] default null,
  p_response_headers bytea[]   default null,
  p_response_bodies  bytea[]   default null,
  p_dry_run          boolean   default false,
  out deleted bigint, out kept bigint)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set lock_timeout = '250ms'
as $pgonce$
declare
  v_row   record;
  v_scope text;
  v_key   text;
  v_as_is boolean;
begin
  deleted := 0;
  kept := 0;
  for v_row in
    select r.* from :"schema"._backfill_rows(p_scopes, p_keys, p_completed_at, p_failed, p_fingerprints, p_response_codes,
                                             p_response_headers, p_response_bodies, p_retention_ms) r
     order by r.scope collate "C", r.key collate "C"
  loop
    v_scope := v_row.scope;
    v_key := v_row.key;
    select k.token is null and k.completed_at is not distinct from k.created_at and k.attempt is null
           and k.created_at = v_row.created_at and k.expires_at = v_row.expires_at and k.status = v_row.status
           and k.fingerprint is not distinct from v_row.fingerprint
           and k.response_code is not distinct from v_row.response_code
           and k.response_headers is not distinct from v_row.response_headers
           and k.response_body is not distinct from v_row.response_body
      into v_as_is
      from :"schema".idempotency_keys k
     where k.scope = v_scope collate "C" and k.key = v_key collate "C"
       for update;
    continue when not found;
    if v_as_is and not p_dry_run then
      delete from :"schema".idempotency_keys k
       where k.scope = v_scope collate "C" and k.key = v_key collate "C";
    end if;
    deleted := deleted + v_as_is::integer;
    kept := kept + (not v_as_is)::integer;
  end loop;
end
$pgonce$;
comment on function :"schema".undo_backfill is
  'Deletes the keys that a backfill of the same rows has inserted and nothing has touched.';
