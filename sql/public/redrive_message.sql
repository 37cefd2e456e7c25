-- Lets a dead message be handled again when it is delivered again, with all its attempts. p_seen: as `keys` showed it
-- to the operator. Raises IK002 if the key has changed, or if the message is forgotten, done, being handled or no
-- message; the error says which. Does not wait for other transactions.
create or replace function :"schema".redrive_message(p_consumer text, p_message_id text, p_seen text) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $pgonce$
declare
  v_row record;
  v_at  timestamptz;
  v_token constant uuid := gen_random_uuid();
begin
  select l.* into v_row from :"schema"._lock_for_operator(p_consumer, p_message_id, p_seen) l;
  v_at := :"schema"._clock();
  -- In the order of begin's decision table.
  if :"schema"._is_forgotten(v_row.status, v_row.expires_at, v_row.lease_expires_at, v_at) then
    raise exception 'the message is forgotten: it is handled as new when it comes again' using errcode = 'IK002';
  elsif v_row.status = 2 then
    raise exception 'the message is done' using errcode = 'IK002';
  elsif :"schema"._is_live(v_row.status, v_row.token, v_row.lease_expires_at, v_at) then
    raise exception 'the message is being handled' using errcode = 'IK002';
  elsif v_row.fingerprint is not null or v_row.steps > 0 then
    raise exception 'the key is not a message' using errcode = 'IK002';
  elsif v_row.status = 1 then
    update :"schema".idempotency_keys k set attempts_uncounted = coalesce(k.attempt, 1)
     where k.scope = p_consumer collate "C" and k.key = p_message_id collate "C";
  else
    update :"schema".idempotency_keys k
       set status = 1, completed_at = null, token = v_token, lease_expires_at = v_at, leased = null,
           attempts_uncounted = coalesce(k.attempt, 1),
           response_code = null, response_headers = null, response_body = null, response_omitted = false
     where k.scope = p_consumer collate "C" and k.key = p_message_id collate "C";
  end if;
end
$pgonce$;
comment on function :"schema".redrive_message is
  'Lets a dead message be handled again when it is delivered again.';
