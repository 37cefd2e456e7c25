-- Leased work: what it has done so far. Written by the functions in sql/, never by hand.
alter table :"schema".idempotency_keys
  -- How many steps are recorded. A released key that has some stays bound to its request.
  add column steps integer not null default 0 check (steps >= 0),
  -- How many attempts no longer count against a cap, because an operator has let the key run again.
  add column attempts_uncounted integer not null default 0 check (attempts_uncounted >= 0),
  -- How the last attempt that failed ended, without what it was about.
  add column last_error text check (char_length(last_error) <= 1000),
  -- JSON for those who poll.
  add column progress bytea;

-- It takes the error now.
drop function if exists :"schema".release(text, text, uuid);

create table :"schema".steps (
  recorded_at timestamptz not null,
  -- The key's `created_at`. A key that is forgotten and begun anew never sees the steps of its former life.
  begun_at    timestamptz not null,
  number      integer not null check (number >= 1),
  scope       text collate "C" not null,
  key         text collate "C" not null,
  name        text collate "C" not null check (octet_length(name) between 1 and 255),
  definition  bytea check (octet_length(definition) = 36),
  output      bytea not null,
  -- No foreign key: its trigger would cost the reaper more than all the rest. reap deletes them.
  constraint steps_pkey primary key (scope, key, name)
);
