create table if not exists invoice (
  id bigint generated always as identity primary key,
  user_id text not null,
  order_id text not null,
  cents bigint not null,
  note text
);
create table if not exists charge (
  id bigint generated always as identity primary key,
  user_id text not null,
  order_id text not null,
  receipt text not null
);
