-- Lets a dead message be handled again, with all its attempts. Whoever has it must send it again. Raises IK002, in
-- words, when it is not so, and never waits for somebody's work.
create or replace function :"schema".redrive(consumer text, message_id text) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $pgonce$
#variable_conflict use_variable
declare
  seen :"schema".idempotency_keys;
  at timestamptz;
begin
  if not pg_try_advisory_xact_lock(:"schema".lock_id(consumer, message_id)) then
    raise exception 'the message is being handled' using errcode = 'IK002';
  end if;
  select k.* into seen from :"schema".idempotency_keys k
   where k.scope = consumer collate "C" and k.key = message_id collate "C"
     for no key update;
  at := :"schema".clock();
  if seen.status is null then
    raise exception 'the message is unknown' using errcode = 'IK002';
  elsif seen.expires_at <= at then
    raise exception 'the message is forgotten: it is handled as new when it comes again' using errcode = 'IK002';
  elsif seen.status = 2 then
    raise exception 'the message is done' using errcode = 'IK002';
  elsif seen.status = 1 and seen.lease_expires_at > at then
    raise exception 'the message is being handled' using errcode = 'IK002';
  elsif seen.fingerprint is not null or seen.steps > 0 then
    raise exception 'the key is not a message' using errcode = 'IK002';
  elsif seen.status = 1 then
    update :"schema".idempotency_keys k set attempts_uncounted = coalesce(k.attempt, 1)
     where k.scope = consumer collate "C" and k.key = message_id collate "C";
  else
    update :"schema".idempotency_keys k
       set status = 1, completed_at = null, token = gen_random_uuid(), lease_expires_at = at, leased = null,
           attempts_uncounted = coalesce(k.attempt, 1),
           response_code = null, response_headers = null, response_body = null, response_omitted = false
     where k.scope = consumer collate "C" and k.key = message_id collate "C";
  end if;
end
$pgonce$;
