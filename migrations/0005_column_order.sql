-- One returns what it has set now, the other takes whether to share the lock.
drop function if exists :"schema".bound_locks(timestamptz);
drop function if exists :"schema".take_lock(bigint, timestamptz);

-- What complete and fail change comes last now: the WAL of an update holds a row from the first column that differs to
-- the last, and scope, key and fingerprint need not be in it. A table that is in use stays as it is: to move its columns
-- would be to write every row anew, and the grants, policies and triggers that were put on it. All code names the
-- columns, and none goes by their order.
do $pgonce$
begin
  -- Functions come after all migrations: where there is none, the table was made a moment ago, in this very message.
  if exists (select from pg_proc where pronamespace = to_regnamespace(:'schema'))
    or exists (select from :"schema".idempotency_keys) then
    return;
  end if;
  drop table :"schema".idempotency_keys;
  create table :"schema".idempotency_keys (
    created_at         timestamptz not null,
    -- Fixed by begin. It is the only indexed column outside the primary key, and neither complete nor fail nor
    -- extend touches it: their updates stay HOT.
    expires_at         timestamptz not null,
    -- Null: there was no lease to expire. A transactional claim, which needs none because its row vanishes with its
    -- holder, has lease_expires_at = expires_at.
    lease_expires_at   timestamptz,
    -- The fence. Random and new for every claim, so that no old token is ever valid again. Null in a row that is in
    -- progress: released, nobody holds the claim.
    token              uuid,
    attempt            integer, -- null: the first
    -- How many steps are recorded. A released key that has some stays bound to its request.
    steps              integer,
    -- How many attempts no longer count against a cap, because an operator has let the key run again.
    attempts_uncounted integer,
    -- Whether the key has been begun under a lease, and so has a row in `unfinished` until it is finished.
    leased             boolean,
    scope              text collate "C" not null,
    key                text collate "C" not null,
    fingerprint        bytea,
    status             smallint not null, -- 1 in_progress, 2 completed, 3 failed
    response_omitted   boolean not null default false,
    response_code      integer,
    completed_at       timestamptz, -- null in a finished row: when it was created
    response_headers   bytea,
    response_body      bytea,
    progress           bytea, -- JSON for those who poll
    last_error         text, -- how the last attempt that failed ended, without what it was about
    -- The arbiter: whatever else goes wrong, a key exists once.
    constraint idempotency_keys_pkey primary key (scope, key)
  );
  create index idempotency_keys_expires_at on :"schema".idempotency_keys (expires_at); -- for the reaper
  begin
    alter table :"schema".idempotency_keys alter column response_body set compression lz4;
  exception when feature_not_supported then
    null; -- not every build of Postgres has it
  end;
end
$pgonce$;
