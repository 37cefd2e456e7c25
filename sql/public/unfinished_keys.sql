-- Lists unfinished leased keys and failed messages for operators, of one scope or of all: those in p_state, or, if it is
-- null, all but `free` ones. The claim that lapsed or lapses first comes first.
--   live       its holder is at work
--   held       waits for an operator; held_because says why: `lapsed` or `attempts`
--   abandoned  the next begin, a recovery or, for a message, its next delivery continues it
--   free       its holder gave it back with nothing done
-- p_messages: only messages, or all but messages; null matches both. is_message: bound to no request, without steps, with a limit of attempts. used: the attempts that count. tries,
-- try_at: as in `abandoned`. Reads up to p_read_max keys (1 to 100000), in the order of scope and key, and returns up to
-- p_count_max (1 to 10000). Locks nothing. Raises IK001 for a bad argument.
create or replace function :"schema".unfinished_keys(
  p_scope     text    default null,
  p_state     text    default null,
  p_messages  boolean default null,
  p_count_max integer default 100,
  p_read_max  integer default 10000)
returns table (
  scope text, key text, state text, held_because text, is_message boolean, used integer, max_attempts integer,
  steps integer, tries integer, try_at timestamptz, last_error text,
  status text, claim text, attempt integer, seen text, fingerprinted boolean,
  created_at timestamptz, completed_at timestamptz, lease_expires_at timestamptz, expires_at timestamptz,
  response_code integer, response_omitted boolean)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $pgonce$
begin
  perform :"schema"._check_range('count_max', p_count_max, 1, 10000);
  perform :"schema"._check_range('read_max', p_read_max, 1, 100000);
  return query
  select u.scope, u.key, u.state, u.held_because, u.is_message, u.used, u.max_attempts, u.steps, u.tries, u.try_at,
         u.last_error, k.status, k.claim, k.attempt, k.seen, k.fingerprinted, k.created_at, k.completed_at,
         k.lease_expires_at, k.expires_at, k.response_code, k.response_omitted
    from (select r.* from :"schema"._read_unfinished(p_scope, p_read_max) r
           where case when p_state is null then r.state <> 'free' else r.state = p_state end
             and (p_messages is null or r.is_message = p_messages)
           order by r.lease_expires_at, r.scope, r.key limit p_count_max) u
   cross join lateral (
     select v.* from :"schema".keys v where v.scope = u.scope and v.key = u.key offset 0) k
   order by u.lease_expires_at, u.scope, u.key;
end
$pgonce$;
comment on function :"schema".unfinished_keys is
  'Lists unfinished leased keys and failed messages for operators, with their states.';

-- Lists the consumers of unfinished messages, in order, with counts: messages that are being handled, that wait for
-- their next delivery, and that are dead. Reads up to p_read_max unfinished keys (1 to 100000). Locks nothing.
create or replace function :"schema".consumers(p_read_max integer default 10000)
returns table (consumer text, handled bigint, waiting bigint, dead bigint, longest_lapsed_ms bigint)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set jit = off
as $pgonce$
declare
  v_at constant timestamptz := :"schema"._clock();
begin
  perform :"schema"._check_range('read_max', p_read_max, 1, 100000);
  return query
  select u.scope, count(*) filter (where u.state = 'live'), count(*) filter (where u.state in ('abandoned', 'free')),
         count(*) filter (where u.state = 'held'),
         floor(extract(epoch from max(v_at - u.lease_expires_at) filter (where u.state <> 'live')) * 1000)::bigint
    from :"schema"._read_unfinished(null, p_read_max) u
   where u.is_message and u.state is not null
   group by u.scope
   order by u.scope;
end
$pgonce$;
comment on function :"schema".consumers is
  'Lists the consumers of unfinished messages, with counts.';
