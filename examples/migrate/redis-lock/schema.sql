create table if not exists payment (
  id bigint generated always as identity primary key,
  user_id text not null,
  cents bigint not null
);
