-- The tables. Only the functions in sql/ write to them. Their roles are told in sql/README.md.

-- One row per key.
create table :"schema".idempotency_keys (
  created_at         timestamptz not null, -- when the operation was begun
  -- When the key is forgotten. Fixed by begin, and the only indexed column beside the primary key, so that the
  -- updates of complete, fail and extend are HOT.
  expires_at         timestamptz not null,
  -- When the claim lapses. A transactional claim needs no lease, because its row vanishes with its holder: it has
  -- lease_expires_at = expires_at. Null in a row that was written once, finished.
  lease_expires_at   timestamptz,
  -- The fence: new for every claim, so that no old token is ever valid again. Null while a row is in progress: the
  -- claim was released. Null in a row that was written once, finished: there was no claim.
  token              uuid,
  attempt            integer, -- how many claims the key has had; null: one
  steps              integer, -- how many steps are recorded; null: none
  attempts_uncounted integer, -- how many attempts do not count against a cap: an operator let it run again, or it was put off
  leased             boolean, -- whether it was begun under a lease; null: no
  scope              text collate "C" not null,
  key                text collate "C" not null,
  fingerprint        bytea,
  -- What complete and fail change comes last: the WAL of an update holds a row from the first column that differs.
  status             smallint not null, -- 1 in progress, 2 completed, 3 failed
  response_omitted   boolean not null default false,
  response_code      integer,
  completed_at       timestamptz, -- null in a finished row: when it was created
  response_headers   bytea,
  response_body      bytea,
  progress           bytea, -- what the holder said last, as JSON
  last_error         text, -- how the last attempt that failed ended; never what it was about
  -- The arbiter: whatever else goes wrong, a key exists once.
  constraint idempotency_keys_pkey primary key (scope, key)
)
-- Room on each page for the row version that complete or fail writes, so that the update is HOT.
with (fillfactor = 95);

-- For the reaper.
create index idempotency_keys_expires_at on :"schema".idempotency_keys (expires_at);

-- The steps of leased work that are done.
create table :"schema".steps (
  recorded_at timestamptz not null,
  -- The key's created_at: a key that is forgotten and begun anew does not see its former steps.
  begun_at    timestamptz not null,
  number      integer not null,
  scope       text collate "C" not null,
  key         text collate "C" not null,
  name        text collate "C" not null,
  definition  bytea, -- the fingerprint of what the step was made from
  output      bytea not null,
  -- No foreign key: its trigger would cost the reaper more than all the rest. reap deletes the rows.
  constraint steps_pkey primary key (scope, key, name)
);

-- The leased keys that are not finished, so that abandoned ones are found without reading the others. An index on
-- idempotency_keys could not do it: complete would have to touch it, and its update would not be HOT.
create table :"schema".unfinished (
  try_at timestamptz not null, -- when a recovery may pick it: at the end of its lease, later after each try
  tries  integer not null default 0, -- how often a recovery has picked it
  scope  text collate "C" not null,
  key    text collate "C" not null,
  -- No foreign key, as above.
  constraint unfinished_pkey primary key (scope, key)
);
create index unfinished_try_at on :"schema".unfinished (try_at);

-- lz4 is three times cheaper than pglz on large bodies, but not every build of PostgreSQL has it.
do $pgonce_lz4$
begin
  alter table :"schema".idempotency_keys alter column response_body set compression lz4;
exception when feature_not_supported then
  null;
end
$pgonce_lz4$;
