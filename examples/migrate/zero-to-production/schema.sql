create table if not exists payment (
  id bigint generated always as identity primary key,
  user_id text not null,
  cents bigint not null
);
do $$ begin
  create type header_pair as (name text, value bytea);
exception when duplicate_object then null;
end $$;
create table if not exists idempotency (
  user_id text not null,
  idempotency_key text not null,
  response_status_code smallint, -- this and the next two: null while the request runs
  response_headers header_pair[],
  response_body bytea,
  created_at timestamptz not null,
  primary key (user_id, idempotency_key)
);
