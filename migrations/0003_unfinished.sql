-- Which leased keys are not finished, so that abandoned ones are found without reading the others. An index
-- on idempotency_keys could not do it: complete would have to touch it, and its update would not be HOT.
-- Written by the functions in sql/, never by hand.
create table :"schema".unfinished (
  -- When a recovery may pick it: at the end of its first lease, and later after each try.
  try_at timestamptz not null check (isfinite(try_at)),
  tries  integer not null default 0 check (tries >= 0),
  scope  text collate "C" not null,
  key    text collate "C" not null,
  -- No foreign key: its trigger would cost every deleted key. finish and reap delete the row.
  constraint unfinished_pkey primary key (scope, key)
);
create index unfinished_try_at on :"schema".unfinished (try_at);

-- Whether the key has been begun under a lease, and so has a row there until it is finished.
alter table :"schema".idempotency_keys add column leased boolean not null default false;

-- Claims of the version before. A transactional claim has lease_expires_at = expires_at.
with claimed as (
  update :"schema".idempotency_keys
     set leased = true
   where status = 1 and token is not null and lease_expires_at <> expires_at
  returning lease_expires_at, scope, key)
insert into :"schema".unfinished (try_at, scope, key) select lease_expires_at, scope, key from claimed;
