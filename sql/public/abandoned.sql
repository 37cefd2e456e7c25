-- Abandoned leased operations, by the rule _is_abandoned. `tries`: how often a recovery has picked the key. `try_at`:
-- when a recovery may pick it again. Without the messages that no recovery may pick. Looks each up by its key: offset 0 keeps the planner from reading all keys,
-- because it cannot know how few are unfinished.
create or replace view :"schema".abandoned as
select k.scope, k.key, k.status, k.claim, k.attempt, k.seen, k.fingerprinted, k.created_at, k.completed_at,
       k.lease_expires_at, k.expires_at, k.response_code, k.response_omitted, u.tries, u.try_at
  from :"schema".unfinished u
 cross join lateral (
   select * from :"schema".keys k where k.scope = u.scope and k.key = u.key offset 0) k
 cross join lateral (
   select r.status, r.token, r.lease_expires_at, r.steps, r.attempts_uncounted, r.expires_at, :"schema"._clock() as at
     from :"schema".idempotency_keys r where r.scope = u.scope and r.key = u.key offset 0) r
 where isfinite(u.try_at)
   and :"schema"._is_abandoned(r.status, r.token, r.lease_expires_at, r.steps, r.attempts_uncounted,
                               r.expires_at, r.at);
comment on view :"schema".abandoned is
  'Lists leased operations that should continue and have no live holder.';

-- With the rights of their reader, on PostgreSQL 15 and newer.
do $pgonce$
begin
  if current_setting('server_version_num')::integer >= 150000 then
    alter view :"schema".keys set (security_invoker = true);
    alter view :"schema".abandoned set (security_invoker = true);
  end if;
end
$pgonce$;
