create table if not exists payment (
  id bigint generated always as identity primary key,
  user_id text not null,
  cents bigint not null
);
create table if not exists idempotency_keys (
  user_id text not null,
  key text not null,
  request jsonb not null,
  created_at timestamptz not null default now(),
  locked_at timestamptz, -- null: finished
  response_code integer,
  response_body jsonb,
  primary key (user_id, key)
);
