-- Returns all that the tables know of one key, without its token, its response and its steps' outputs, and without
-- locking it. No row if the key is unknown. state, held_because, is_message, max_attempts, tries, try_at: see
-- unfinished_keys; null unless the key is listed as unfinished. used: the attempts that count.
create or replace function :"schema".key_details(p_scope text, p_key text)
returns table (
  status text, claim text, attempt integer, seen text, fingerprinted boolean,
  created_at timestamptz, completed_at timestamptz, lease_expires_at timestamptz, expires_at timestamptz,
  response_code integer, response_omitted boolean, response_headers_bytes integer, response_body_bytes integer,
  overdue boolean, leased boolean, used integer, progress bytea, last_error text,
  state text, held_because text, is_message boolean, max_attempts integer, tries integer, try_at timestamptz)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $pgonce$
declare
  v_at constant timestamptz := :"schema"._clock();
begin
  return query
  select v.status, v.claim, v.attempt, v.seen, v.fingerprinted, v.created_at, v.completed_at, v.lease_expires_at,
         v.expires_at, v.response_code, v.response_omitted, v.response_headers_bytes, v.response_body_bytes, v.overdue,
         coalesce(k.leased, false), coalesce(k.attempt, 1) - coalesce(k.attempts_uncounted, 0), k.progress, k.last_error,
         case when u.scope is not null then
           :"schema"._unfinished_word(k.status, k.token, k.lease_expires_at, k.steps, k.attempts_uncounted,
                                      k.expires_at, h.because, v_at) end,
         h.because, :"schema"._is_message(k.fingerprint, k.steps, u.max_attempts), u.max_attempts, u.tries,
         nullif(u.try_at, 'infinity')
    from :"schema".keys v
    join :"schema".idempotency_keys k on k.scope = v.scope and k.key = v.key
    left join :"schema".unfinished u on u.scope = k.scope and u.key = k.key
   cross join lateral (
     select case when u.scope is not null then
              :"schema"._held_because(k.token, k.attempt, k.attempts_uncounted,
                                      case when u.holds then 'hold' else 'retry' end, u.max_attempts) end as because) h
   where k.scope = p_scope collate "C" and k.key = p_key collate "C";
end
$pgonce$;
comment on function :"schema".key_details is
  'Returns all that the tables know of one key, without its token, its response and outputs.';

-- Lists the recorded steps of a key in order, without their outputs.
create or replace function :"schema".key_steps(p_scope text, p_key text)
returns table (number integer, name text, recorded_at timestamptz, output_bytes integer)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $pgonce$
begin
  return query
  select s.number, s.name, s.recorded_at, octet_length(s.output)
    from :"schema".idempotency_keys k
    join :"schema".steps s on s.scope = k.scope and s.key = k.key and s.begun_at = k.created_at
   where k.scope = p_scope collate "C" and k.key = p_key collate "C"
   order by s.number;
end
$pgonce$;
comment on function :"schema".key_steps is
  'Lists the recorded steps of a key, without their outputs.';

-- Returns the recorded output of a step; null if there is no such step.
create or replace function :"schema".step_output(p_scope text, p_key text, p_name text) returns bytea
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $pgonce$
begin
  return (
    select s.output
      from :"schema".idempotency_keys k
      join :"schema".steps s on s.scope = k.scope and s.key = k.key and s.begun_at = k.created_at
     where k.scope = p_scope collate "C" and k.key = p_key collate "C" and s.name = p_name collate "C");
end
$pgonce$;
comment on function :"schema".step_output is
  'Returns the recorded output of a step.';
