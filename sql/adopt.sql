-- Gives an operator the claim on a key that nobody works on, lapsed or released, and returns its token: to be
-- used with complete, fail or release in the same transaction. The last holder, should it still live, is
-- fenced off. The attempts so far count no more against a cap, so that a release lets the key run again.
-- token (null: released) and attempt: as the operator has seen them; without the attempt, one release would
-- look like the next. Raises IK002, in words, when the key is not so, and never waits for somebody's work.
create or replace function :"schema".adopt(scope text, key text, token uuid, attempt integer) returns uuid
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $pgonce$
#variable_conflict use_variable
declare
  seen :"schema".idempotency_keys;
  at timestamptz;
  adopted constant uuid := gen_random_uuid();
begin
  if not pg_try_advisory_xact_lock(:"schema".lock_id(scope, key)) then
    raise exception 'the key is being worked on' using errcode = 'IK002';
  end if;
  select k.* into seen from :"schema".idempotency_keys k
   where k.scope = scope collate "C" and k.key = key collate "C"
     for no key update;
  at := :"schema".clock();
  if seen.status is null then
    raise exception 'the key is unknown' using errcode = 'IK002';
  elsif seen.status <> 1 then
    raise exception 'the operation is finished' using errcode = 'IK002';
  elsif seen.token is not null and coalesce(seen.lease_expires_at > at, true) then
    raise exception 'the claim is live: its holder may be at work' using errcode = 'IK002';
  elsif seen.expires_at <= at then
    raise exception 'the key is forgotten: the next begin runs it anew' using errcode = 'IK002';
  elsif seen.token is distinct from token or coalesce(seen.attempt, 1) is distinct from attempt then
    raise exception 'the key has changed since it was looked at' using errcode = 'IK002';
  end if;
  update :"schema".idempotency_keys k
     set token = adopted, attempts_uncounted = coalesce(k.attempt, 1)
   where k.scope = scope collate "C" and k.key = key collate "C";
  return adopted;
end
$pgonce$;
