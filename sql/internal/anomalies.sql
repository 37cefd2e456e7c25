-- The parts of the function anomalies. Each returns what it found: a code; the scope, if it is about one; what was seen;
-- why it matters; what to do. None reads the table of keys from end to end.

-- A scope whose share of mismatches or duplicates in the last hour is three times that of the day before.
create or replace function :"schema"._anomalous_rates()
returns table (anomaly text, scope text, saw text, matters text, remedy text)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $pgonce$
declare
  v_at constant timestamptz := :"schema"._clock();
begin
  return query
  with counted as (
    select h.scope, h.minute >= v_at - interval '1 hour' as is_now, sum(h.mismatch) as mismatch,
           sum(h.duplicates) as duplicates,
           sum(h.started) + sum(h.duplicates) + sum(h.in_progress) + sum(h.mismatch) + sum(h.held) as calls
      from :"schema".history h
     where h.minute >= v_at - interval '25 hours' and h.minute <= v_at and h.scope <> ''
     group by 1, 2),
  rates as (
    select n.scope, k.anomaly, n.calls, k.count, k.count / n.calls as rate, k.before / b.calls as rate_before,
           k.matters, k.remedy, k.count_least, k.rate_least
      from counted n
      join counted b on b.scope = n.scope and b.calls >= 100 and not b.is_now
     cross join lateral (values
       ('mismatches', n.mismatch, b.mismatch, 10, 0.01,
        'A client that sends other requests under old keys gets errors, or two clients share their keys.',
        'Ask who calls this scope what was deployed: the key must change when the request does.'),
       ('duplicates', n.duplicates, b.duplicates, 50, 0.1,
        'Clients that retry this often do not get the first answer, or send the same work again and again.',
        'Look for timeouts, restarts or a loop at the clients, and for a slow database.'))
       k(anomaly, count, before, count_least, rate_least, matters, remedy)
     where n.is_now and n.calls >= 100)
  select r.anomaly, r.scope,
         format('%s of %s calls in the last hour were %s (%s %%); in the day before it were %s %%',
                r.count, r.calls, r.anomaly, round(100 * r.rate, 1), round(100 * r.rate_before, 1)),
         r.matters, r.remedy
    from rates r
   where r.count >= r.count_least and r.rate >= r.rate_least and r.rate >= 3 * r.rate_before
   order by r.count desc
   limit 20;
end
$pgonce$;

-- Returns the first scopes that have keys, in order. One look at the primary key for each.
create or replace function :"schema"._some_scopes(p_count_max integer) returns table (scope text)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_sort = off
set jit = off
as $pgonce$
declare
  v_scope text := '';
begin
  for v_count in 1 .. p_count_max loop
    execute format('select k.scope from %I.%I k where k.scope > $1 collate "C" order by k.scope limit 1',
                   :'schema', :"schema"._keys_to_read())
      into v_scope using v_scope;
    exit when v_scope is null;
    scope := v_scope;
    return next;
  end loop;
end
$pgonce$;

-- Looks at up to 100 keys of a scope: the last in their order, which are the newest if keys begin with a time. Only keys
-- with a fingerprint, so no messages: brokers count theirs. Returns how many it has seen, how many of them are a number,
-- or a word and a number, and how many follow another one directly.
create or replace function :"schema"._sample_keys(p_scope text, out seen bigint, out numbers bigint, out next bigint)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_sort = off
set jit = off
as $pgonce$
begin
  execute format(
    'with sample as (
       select k.key, k.fingerprinted from %I.%I k where k.scope = $1 collate "C" order by k.key desc limit 100),
     numbers as (
       select substring(s.key from ''^[^0-9]*'') as prefix, substring(s.key from ''[0-9]+$'')::numeric as number
         from sample s where s.fingerprinted and s.key ~ ''^[^0-9]*[0-9]{1,18}$'')
     select (select count(*) from sample s where s.fingerprinted), count(*),
            count(*) filter (where exists (select from numbers o where o.prefix = n.prefix and o.number = n.number - 1))
       from numbers n', :'schema', :"schema"._keys_to_read())
    into seen, numbers, next using p_scope;
end
$pgonce$;

-- Scopes whose keys look like counted numbers.
create or replace function :"schema"._guessable_keys()
returns table (anomaly text, scope text, saw text, matters text, remedy text)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_sort = off
set jit = off
as $pgonce$
declare
  v_scope   text;
  v_count   bigint;
  v_numbers bigint;
  v_next    bigint;
  v_found   integer := 0;
begin
  for v_scope in select s.scope from :"schema"._some_scopes(1000) s loop
    select k.seen, k.numbers, k.next into v_count, v_numbers, v_next from :"schema"._sample_keys(v_scope) k;
    continue when v_count < 20 or v_numbers < 0.9 * v_count and v_next < 0.5 * v_count;
    anomaly := 'guessable_keys';
    scope := v_scope;
    saw := format('of %s keys looked at, %s are a number, or a word and a number; %s follow another one directly',
                  v_count, v_numbers, v_next);
    matters := 'Who guesses a key can take it before its owner, whose request is then refused, or read the stored response.';
    remedy := 'Let clients send random keys, such as UUIDs, unless all who can call this scope may see each other''s data.';
    return next;
    v_found := v_found + 1;
    exit when v_found = 20;
  end loop;
end
$pgonce$;

-- Keys that should be deleted and are not.
create or replace function :"schema"._late_reaper()
returns table (anomaly text, scope text, saw text, matters text, remedy text)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_sort = off
set jit = off
as $pgonce$
declare
  v_at     constant timestamptz := :"schema"._clock();
  v_count  bigint;
  v_oldest timestamptz;
begin
  execute format('select count(*), min(o.expires_at) from (
                    select k.expires_at from %I.%I k where k.expires_at <= $1 and k.overdue order by k.expires_at limit 10001) o',
                 :'schema', :"schema"._keys_to_read())
    into v_count, v_oldest using v_at;
  if v_oldest > v_at - interval '10 minutes' or v_oldest is null then
    return;
  end if;
  anomaly := 'late_reaper';
  scope := null;
  saw := format('%s keys are past their retention and not deleted, the oldest for %s minutes',
                case when v_count > 10000 then 'more than 10000' else v_count::text end,
                floor(extract(epoch from v_at - v_oldest) / 60));
  matters := 'The table grows, and with it the time of each call and of a vacuum.';
  remedy := 'Run a Reaper in your service, or pgonce reap from cron; if one runs, look at its log line `reaped`.';
  return next;
end
$pgonce$;

-- A scope that holds nearly all leased keys in progress, though others have keys.
create or replace function :"schema"._greedy_scope()
returns table (anomaly text, scope text, saw text, matters text, remedy text)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $pgonce$
begin
  return query
  with looked_at as (
    select u.scope from :"schema".unfinished u where isfinite(u.try_at) order by u.try_at limit 10000), -- no messages
  held as (
    select u.scope, count(*) as count, sum(count(*)) over () as of_all from looked_at u group by u.scope)
  select 'greedy_scope', h.scope,
         format('%s of %s leased keys in progress belong to one scope', h.count, h.of_all),
         'One client takes the workers, connections and remotes that others need.',
         'Look at what this scope runs: pgonce list --abandoned, and the ages of its claims. Limit how much of it runs at once.'
    from held h
   where h.count >= 100 and h.count >= 0.8 * h.of_all
     and (select count(*) from :"schema"._some_scopes(3)) = 3;
end
$pgonce$;
