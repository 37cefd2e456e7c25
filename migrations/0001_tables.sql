-- The tables. Only the SQL in sql/ writes to them; sql/README.md describes their roles.

-- One row per key.
create table :"schema".idempotency_keys (
  created_at         timestamptz not null, -- when the operation began
  -- When the key is forgotten; fixed by begin. The only indexed column besides the primary key, so that complete, fail
  -- and extend are HOT updates.
  expires_at         timestamptz not null,
  -- When the claim lapses. A transactional claim needs no lease, because its row vanishes with its holder: its
  -- lease_expires_at is expires_at. Null in a row inserted already finished.
  lease_expires_at   timestamptz,
  -- The fence. Each claim gets a new token, so no old token is ever valid again. Null in progress: the claim was
  -- released. Null in a row inserted already finished: there was no claim.
  token              uuid,
  attempt            integer, -- how many claims the key has had; null: one
  steps              integer, -- how many steps are recorded; null: none
  attempts_uncounted integer, -- how many attempts do not count toward a cap: postponed, or forgiven by an operator
  leased             boolean, -- whether it was begun under a lease; null: no
  scope              text collate "C" not null,
  key                text collate "C" not null,
  fingerprint        bytea,
  -- Columns that complete and fail change come last: the WAL of an update holds the row from its first changed column.
  status             smallint not null, -- 1 in progress, 2 completed, 3 failed
  response_omitted   boolean not null default false,
  response_code      integer,
  completed_at       timestamptz, -- null in a finished row: created_at
  response_headers   bytea,
  response_body      bytea,
  progress           bytea, -- the holder's last report, as JSON
  last_error         text, -- how the last failed attempt ended; callers leave out request data
  -- Whatever else goes wrong, a key exists once.
  constraint idempotency_keys_pkey primary key (scope, key)
)
-- Leaves room on each page for the version that complete or fail writes, so that the update is HOT.
with (fillfactor = 95);

-- For the reaper.
create index idempotency_keys_expires_at on :"schema".idempotency_keys (expires_at);

-- Finished steps of leased work.
create table :"schema".steps (
  recorded_at timestamptz not null,
  -- The key's created_at: a forgotten key that is begun again does not see its old steps.
  begun_at    timestamptz not null,
  number      integer not null,
  scope       text collate "C" not null,
  key         text collate "C" not null,
  name        text collate "C" not null,
  definition  bytea, -- fingerprint of the step's input
  output      bytea not null,
  -- No foreign key: its trigger would cost the reaper more than all the rest. reap and begin delete the rows.
  constraint steps_pkey primary key (scope, key, name)
);

-- Unfinished leased keys and failed messages, so that recoveries and operators find them without reading all keys. With
-- an index on idempotency_keys instead, the update of complete would not be HOT.
create table :"schema".unfinished (
  -- When a recovery may pick it: at the end of its first lease, later after each try. Infinity: never; it is a message.
  try_at timestamptz not null,
  tries  integer not null default 0, -- how often a recovery has picked it
  -- The policy of its last begin, so that operators see which keys are held.
  max_attempts integer, -- null: any number
  holds  boolean, -- whether it is held after a lapse; null: no
  scope  text collate "C" not null,
  key    text collate "C" not null,
  -- No foreign key, as above.
  constraint unfinished_pkey primary key (scope, key)
);
create index unfinished_try_at on :"schema".unfinished (try_at);

-- What callers were answered, counted per minute, scope and class; only of processes that keep a history. Each process
-- (source) writes only its own rows, so none waits for another.
create table :"schema".history (
  minute         timestamptz not null,
  expires_at     timestamptz not null, -- when reap deletes the row
  started        bigint not null,
  replayed       bigint not null,
  in_progress    bigint not null,
  mismatch       bigint not null,
  held           bigint not null,
  recovered      bigint not null, -- of the started ones, those that continued an earlier attempt
  completed      bigint not null,
  failed         bigint not null,
  released       bigint not null,
  claim_lost     bigint not null,
  commit_unknown bigint not null,
  duplicates     bigint not null, -- work prevented: replays, and messages seen before
  value          bigint not null, -- what the user says that the prevented work was worth
  unkeyed        bigint not null, -- requests without a key
  -- While protection was only observed:
  observed_duplicates bigint not null, -- calls that it would have answered without work
  observed_mismatches bigint not null, -- calls that it would have refused for another request's key
  observed_value      bigint not null, -- what those duplicates were worth
  source         uuid not null,
  scope          text collate "C" not null, -- empty: scopes beyond the number that a process tells apart
  class          text collate "C" not null,
  constraint history_pkey primary key (minute, scope, class, source)
)
-- A row is updated a few times in its minute, and its neighbours at the same moment: room for two versions of each.
with (fillfactor = 50);
create index history_expires_at on :"schema".history (expires_at);

-- Which rollout mode a class got, when, and by whom: the last line of a class counts. Null: as its code says.
create table :"schema".rollout (
  id    bigint generated always as identity,
  at    timestamptz not null,
  role  text not null default session_user,
  actor text default left(nullif(current_setting('pgonce.actor', true), ''), 255), -- whom the application names
  mode  text,
  class text collate "C" not null,
  constraint rollout_pkey primary key (id),
  constraint rollout_mode check (mode in ('off', 'observe', 'optional', 'required'))
);
create index rollout_class on :"schema".rollout (class, id);

-- The audit trail: one line per transition of a key, by the triggers that audit_on makes. A partition per day, made ahead
-- and dropped by reap.
create table :"schema".audit (
  at      timestamptz not null,
  id      bigserial not null, -- of one key, in the order of its transitions
  txid    bigint not null default pg_current_xact_id()::text::bigint,
  attempt integer not null,
  role    text not null default session_user,
  actor   text default left(nullif(current_setting('pgonce.actor', true), ''), 255), -- whom the application names
  action  text not null,
  seen    text not null, -- as `keys` shows it after the transition; never the token
  scope   text collate "C" not null,
  key     text collate "C" not null
) partition by range (at);
create index audit_key on :"schema".audit (scope, key);
-- For lines of a day without a partition, because no reaper ran.
create table :"schema".audit_default partition of :"schema".audit default;

-- lz4 is three times cheaper than pglz on large bodies. Not every build of PostgreSQL has it.
do $pgonce_lz4$
begin
  alter table :"schema".idempotency_keys alter column response_body set compression lz4;
exception when feature_not_supported then
  null;
end
$pgonce_lz4$;
