-- What the workload writes: one table of orders per protection.
create table :schema.orders_bare (
  id uuid primary key default gen_random_uuid(),
  customer_id bigint not null, amount_cents bigint not null,
  currency text not null, status text not null, note text not null);
create table :schema.orders_hand_written (like :schema.orders_bare including all);
create table :schema.orders_run (like :schema.orders_bare including all);
create table :schema.orders_run_optimistic (like :schema.orders_bare including all);
create table :schema.orders_verbs (like :schema.orders_bare including all);
create table :schema.orders_leased (like :schema.orders_bare including all);

-- A table of keys as one writes it by hand.
create table :schema.keys_hand_written (
  scope       text collate "C" not null,
  key         text collate "C" not null,
  fingerprint bytea not null,
  status      smallint not null,
  attempt     integer not null default 1,
  response    bytea,
  created_at  timestamptz not null default now(),
  expires_at  timestamptz not null,
  primary key (scope, key));
create index on :schema.keys_hand_written (expires_at);

do $bench$
declare
  name regclass;
begin
  for name in select c.oid from pg_class c where c.relnamespace = ':schema'::regnamespace and c.relkind = 'r' loop
    execute format('alter table %s set (autovacuum_enabled = off)', name);
  end loop;
end
$bench$;
