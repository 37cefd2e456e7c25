-- Marks work as done that was done before pgonce: inserts finished rows with their responses, so that a retry gets them.
-- The retention counts from p_completed_at. Up to 10000 rows, as arrays; all but the first three may be null: p_failed
-- (null: completed), p_fingerprints (of fingerprint()), and the response. Returns how many keys are new (with p_dry_run:
-- would be), how many are known already and stay as they are, and how many were completed too long ago to be remembered.
-- Call it again with the same rows after an interruption. Locks only the new rows, in the order of their keys, and waits at
-- most 250 ms for one in the way (55P03: call it again), because others wait for these rows until its commit. Raises IK001,
-- with the row's number, for a bad one. After an error nothing of the call is written.
--
-- completed_at = created_at marks the rows for undo_backfill: the other functions leave completed_at null, or write a later time,
-- and a token.
create or replace function :"schema".backfill(
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
  out inserted bigint, out known bigint, out expired bigint)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set lock_timeout = '250ms'
as $pgonce$
declare
  v_at constant timestamptz := :"schema"._clock();
begin
  with given as materialized (
    select distinct on (r.scope collate "C", r.key collate "C") r.*
      from :"schema"._backfill_rows(p_scopes, p_keys, p_completed_at, p_failed, p_fingerprints, p_response_codes,
                                    p_response_headers, p_response_bodies, p_retention_ms) r
     order by r.scope collate "C", r.key collate "C", r.created_at),
  written as (
    insert into :"schema".idempotency_keys
      (created_at, completed_at, expires_at, scope, key, fingerprint, status, response_omitted, response_code,
       response_headers, response_body)
    select g.created_at, g.created_at, g.expires_at, g.scope, g.key, g.fingerprint, g.status, g.response_omitted, g.response_code,
           g.response_headers, g.response_body
      from given g
     where g.expires_at > v_at and not p_dry_run
     order by g.scope collate "C", g.key collate "C"
    on conflict (scope, key) do nothing
    returning 1)
  select case when p_dry_run
              then count(*) filter (where g.expires_at > v_at and not exists (
                     select from :"schema".idempotency_keys k
                      where k.scope = g.scope collate "C" and k.key = g.key collate "C"))
              else (select count(*) from written) end,
         count(*) filter (where g.expires_at > v_at), count(*) filter (where g.expires_at <= v_at)
    into inserted, known, expired
    from given g;
  known := known - inserted;
end
$pgonce$;
comment on function :"schema".backfill is
  'Marks work as done that was done before, with its responses.';
