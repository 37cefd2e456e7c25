-- Leased operations that nobody works on: their claim has lapsed, or was released.
-- `tries`: how often a recovery has picked them; `try_at`: when it may again. Each is looked up by its key
-- (offset 0 keeps the planner from reading all keys instead: it cannot know how few are unfinished).
create or replace view :"schema".abandoned as
select k.scope, k.key, k.status, k.claim, k.attempt, k.token, k.fingerprinted, k.created_at, k.completed_at,
       k.lease_expires_at, k.expires_at, k.response_code, k.response_omitted, u.tries, u.try_at
  from :"schema".unfinished u
 cross join lateral (select * from :"schema".keys k where k.scope = u.scope and k.key = u.key offset 0) k
 where k.claim in ('lapsed', 'released') and k.expires_at > :"schema".clock();
