-- Like begin_operation, for work that also acts outside the database. Commits the claim before the work starts. The
-- claim lapses after p_lease_ms unless it is extended. Refused inside a transaction (2D000).
--
-- p_token: a new random token. If the answer is lost, call again with the same token: `started` then means that the
-- claim is yours. p_lease_ms: 1 to p_retention_ms. `started` writes one row version, and one row in `unfinished`.
create or replace procedure :"schema".begin_leased(
  p_scope        text,
  p_key          text,
  p_token        uuid,
  p_lease_ms     bigint,
  p_fingerprint  bytea   default null,
  p_retention_ms bigint  default 86400000,
  p_wait_ms      bigint  default 0,
  p_on_lapse     text    default 'retry',
  p_max_attempts integer default null,
  p_lock_replay  boolean default false,
  inout answer             text    default null,
  inout attempt            integer default null,
  inout lease_remaining_ms bigint  default null,
  inout held_because       text    default null,
  inout status             text    default null,
  inout response_code      integer default null,
  inout response_headers   bytea   default null,
  inout response_body      bytea   default null,
  inout response_omitted   boolean default null,
  inout recovered          boolean default null)
language plpgsql
as $pgonce$
begin
  commit;
  set transaction isolation level read committed;
  if p_token is null then
    raise exception 'token is null' using errcode = 'IK001';
  elsif p_lease_ms is null then
    raise exception 'lease_ms is null' using errcode = 'IK001';
  end if;
  select b.answer, b.attempt, b.lease_remaining_ms, b.held_because, b.status, b.response_code,
         b.response_headers, b.response_body, b.response_omitted, b.recovered
    into answer, attempt, lease_remaining_ms, held_because, status, response_code,
         response_headers, response_body, response_omitted, recovered
    from :"schema"._begin(p_scope, p_key, p_fingerprint, p_retention_ms, p_token, p_lease_ms, p_wait_ms, p_on_lapse,
                          p_max_attempts, p_lock_replay) b;
  commit;
end
$pgonce$;
comment on procedure :"schema".begin_leased is
  'Begins an operation that also acts outside the database, and commits. Answers as begin_operation.';
