-- One row per (scope, key). Written by the functions in sql/, never by hand.
-- Column order: fixed-width columns first, then the variable ones.
create table :"schema".idempotency_keys (
  created_at       timestamptz not null check (isfinite(created_at)),
  -- Fixed by begin. It is the only indexed column outside the primary key, and neither
  -- complete nor fail nor extend touches it: their updates stay HOT.
  expires_at       timestamptz not null check (isfinite(expires_at)),
  -- Never null: "no lease" and "lease used up" must not look alike. A transactional claim,
  -- which needs no lease because its row vanishes with its holder, has lease_expires_at = expires_at.
  lease_expires_at timestamptz not null check (isfinite(lease_expires_at)),
  completed_at     timestamptz,
  -- The fence. Random and new for every claim, so that no old token is ever valid again.
  -- Null: released, nobody holds the claim.
  token            uuid,
  attempt          integer not null check (attempt >= 1),
  response_code    integer,
  status           smallint not null check (status in (1, 2, 3)), -- 1 in_progress, 2 completed, 3 failed
  response_omitted boolean not null default false,
  scope            text collate "C" not null check (octet_length(scope) between 1 and 255),
  key              text collate "C" not null check (octet_length(key) between 1 and 255),
  fingerprint      bytea check (octet_length(fingerprint) = 36),
  response_headers bytea,
  response_body    bytea,
  -- The arbiter: whatever else goes wrong, a key exists once.
  constraint idempotency_keys_pkey primary key (scope, key),
  -- A finished row keeps its response, an unfinished one has none.
  constraint idempotency_keys_finished check ((status = 1) = (completed_at is null))
);

-- For the reaper.
create index idempotency_keys_expires_at on :"schema".idempotency_keys (expires_at);

-- lz4 is three times cheaper than pglz on large bodies, but not every build of Postgres has it.
do $pgonce$
begin
  alter table :"schema".idempotency_keys alter column response_body set compression lz4;
exception when feature_not_supported then
  null;
end
$pgonce$;
