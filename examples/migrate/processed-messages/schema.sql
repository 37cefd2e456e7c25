create table if not exists orders (
  id bigint generated always as identity primary key,
  message_id text not null,
  cents bigint not null
);
create table if not exists processed_messages (
  message_id text primary key,
  processed_at timestamptz not null default now()
);
create table if not exists queue (
  message_id text primary key,
  cents bigint not null,
  deliveries integer not null default 0,
  visible_at timestamptz not null default now(),
  dead text -- why nobody takes it any more
);
