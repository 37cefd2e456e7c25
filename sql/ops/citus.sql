-- Distributes pgonce's tables over the nodes of a Citus 13 cluster by scope. Run it on the coordinator as the owner of
-- the schema, after each `pgonce migrate`, which restores the functions that the end of this file replaces:
--   psql -v ON_ERROR_STOP=1 -v schema=pgonce -f citus.sql
-- What works on Citus and what does not: src/docs/operations.md, "Citus".

-- A transaction within one scope stays on one node.
select create_distributed_table(t.name::regclass, 'scope', colocate_with => t.beside)
  from (values (1, format('%I.idempotency_keys', :'schema'), 'none'),
               (2, format('%I.steps', :'schema'), format('%I.idempotency_keys', :'schema')),
               (3, format('%I.unfinished', :'schema'), format('%I.idempotency_keys', :'schema'))) t(place, name, beside)
 where t.name::regclass not in (select p.logicalrelid from pg_dist_partition p)
 order by t.place;

-- Distribute your own tables alike. scope must be a column, and part of the primary key and of every unique key.
--   select create_distributed_table('orders', 'scope', colocate_with => 'pgonce.idempotency_keys');

-- Functions that statements call on the nodes of the shards.
select create_distributed_function(p.oid::regprocedure::text)
  from pg_proc p
 where p.pronamespace = :'schema'::regnamespace
   and p.proname in ('_clock', '_lock_id', '_is_corrupt', '_is_live', '_is_released', '_is_free', '_is_finished',
                     '_is_mismatch', '_is_same', '_is_leased_at', '_is_held', '_is_forgotten', '_is_abandoned', '_decide',
                     '_status_word', '_claim_word', '_seen', '_held_because', '_unfinished_word', '_is_message');

-- One batch of reap. Rows can be locked on only one shard at a time, so it goes by scope: finds scopes with forgotten
-- keys on all shards, without locks, then reaps each as usual.
create or replace function :"schema"._reap_batch(
  p_batch_size integer, inout watermark bigint, out deleted bigint)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $pgonce$
declare
  v_at constant timestamptz := :"schema"._clock();
  v_scope text;
  v_keys  text[];
  v_count bigint;
begin
  perform :"schema"._check_range('batch_size', p_batch_size, 1, 100000);
  deleted := 0;
  for v_scope in
    select k.scope from :"schema".idempotency_keys k
     where :"schema"._is_forgotten(k.status, k.expires_at, k.lease_expires_at, v_at)
       and not :"schema"._is_corrupt(k.status, k.expires_at, k.lease_expires_at)
     group by k.scope
     limit p_batch_size
  loop
    select array_agg(o.key) into v_keys
      from (
        select k.key from :"schema".idempotency_keys k
         where k.scope = v_scope
           and :"schema"._is_forgotten(k.status, k.expires_at, k.lease_expires_at, v_at)
           and not :"schema"._is_corrupt(k.status, k.expires_at, k.lease_expires_at)
         order by k.expires_at
         limit p_batch_size - deleted
           for update skip locked) o;
    delete from :"schema".idempotency_keys k
     where k.scope = v_scope and k.key = any (v_keys)
       and :"schema"._is_forgotten(k.status, k.expires_at, k.lease_expires_at, v_at);
    get diagnostics v_count = row_count;
    delete from :"schema".steps s where s.scope = v_scope and s.key = any (v_keys);
    delete from :"schema".unfinished u where u.scope = v_scope and u.key = any (v_keys);
    deleted := deleted + v_count;
    exit when deleted >= p_batch_size;
  end loop;
end
$pgonce$;

-- Implements pick_abandoned. Looks at all shards, without locks, then picks each key by a compare-and-set on try_at.
-- Two recoveries that look at once divide the keys that both saw.
create or replace function :"schema"._pick_abandoned(
  p_scopes text, p_count_max integer, p_first_pause_ms bigint, p_longest_pause_ms bigint,
  out scopes text[], out keys text[])
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $pgonce$
declare
  v_at constant timestamptz := :"schema"._clock();
  v_due record;
begin
  perform :"schema"._check_name('scopes', p_scopes);
  perform :"schema"._check_range('count_max', p_count_max, 1, 1000);
  perform :"schema"._check_range('first_pause_ms', p_first_pause_ms, 1, 86400000);
  perform :"schema"._check_range('longest_pause_ms', p_longest_pause_ms, p_first_pause_ms, 86400000);
  scopes := '{}';
  keys := '{}';
  for v_due in
    select u.scope, u.key, u.try_at,
           v_at + least(p_longest_pause_ms, p_first_pause_ms * 2 ^ least(u.tries, 30)) * interval '1 millisecond' as next
      from :"schema".unfinished u
      join :"schema".idempotency_keys k on k.scope = u.scope and k.key = u.key
     where u.try_at <= v_at and u.scope like p_scopes
       and :"schema"._is_abandoned(k.status, k.token, k.lease_expires_at, k.steps, k.attempts_uncounted, k.expires_at, v_at)
     order by u.try_at
     limit p_count_max
  loop
    update :"schema".unfinished u set tries = u.tries + 1, try_at = v_due.next
     where u.scope = v_due.scope and u.key = v_due.key and u.try_at = v_due.try_at;
    if found then
      scopes := scopes || v_due.scope;
      keys := keys || v_due.key;
    end if;
  end loop;
end
$pgonce$;
