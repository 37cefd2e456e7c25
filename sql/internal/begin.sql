-- Implements begin_leased and the rare cases of begin_operation; arguments and answers are described there. A
-- transactional begin has no p_lease_ms and no p_token; a leased begin passes a new random token.
--
-- Lock order everywhere: the key's advisory lock, the key's row, its row in `unfinished`; several keys in the order of
-- their ids. complete, fail, release, extend, reap, and receive for new messages take no advisory lock, so they never
-- wait for a caller that only asks. The lock on a key's row covers the deletion of its steps.
create or replace function :"schema"._begin(
  p_scope text, p_key text, p_fingerprint bytea, p_retention_ms bigint, p_token uuid, p_lease_ms bigint,
  p_wait_ms bigint, p_on_lapse text, p_max_attempts integer, p_lock_replay boolean,
  out answer             text,
  out token              uuid,
  out attempt            integer,
  out lease_remaining_ms bigint,
  out held_because       text,
  out status             text,
  out response_code      integer,
  out response_headers   bytea,
  out response_body      bytea,
  out response_omitted   boolean,
  out recovered          boolean)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $pgonce$
declare
  v_lock_id      constant bigint := :"schema"._lock_id(p_scope, p_key);
  v_lock_timeout constant text := current_setting('lock_timeout');
  v_deadline     timestamptz;
  v_at           timestamptz;
  v_row          :"schema".idempotency_keys;
begin
  if :"schema"._fits_begin(p_scope, p_key, p_fingerprint, p_retention_ms, p_lease_ms, p_wait_ms, p_on_lapse,
                           p_max_attempts) is not true then
    perform :"schema"._check_begin(p_scope, p_key, p_fingerprint, p_retention_ms, p_lease_ms, p_wait_ms, p_on_lapse,
                                   p_max_attempts);
  end if;
  -- A transaction that has written holds locks. Waiting for the key could deadlock with the key's holder, so this
  -- transaction gets in_progress without waiting for the key's lock.
  v_deadline := clock_timestamp()
    + case when pg_current_xact_id_if_assigned() is null then p_wait_ms else 0 end * interval '1 millisecond';

  -- Looks again if the row vanishes or changes between two looks. The limit is for a row that blocks the insert but
  -- cannot be seen.
  for v_look in 1 .. 100 loop
    select k.* into v_row from :"schema".idempotency_keys k
     where k.scope = p_scope collate "C" and k.key = p_key collate "C";
    v_at := :"schema"._clock(); -- after every wait, never before
    answer := :"schema"._decide(v_row.status, v_row.token, v_row.fingerprint, v_row.expires_at, v_row.lease_expires_at,
                                v_row.steps, v_row.attempt, v_row.attempts_uncounted,
                                v_at, p_fingerprint, p_token, p_on_lapse, p_max_attempts);

    if answer is null or answer = 'started' then
      -- The row does not decide, so the call needs the right to write. This block is a subtransaction: an error that
      -- leaves it gives the locks back, so that a caller that does not write delays no other caller.
      begin
        if not pg_try_advisory_xact_lock(v_lock_id) then
          perform :"schema"._take_lock(v_lock_id, v_deadline);
        end if;
        -- A second statement: a snapshot from before the lock would miss what the lock's last holder committed.
        select k.* into v_row from :"schema".idempotency_keys k
         where k.scope = p_scope collate "C" and k.key = p_key collate "C";
        v_at := :"schema"._clock();
        answer := :"schema"._decide(v_row.status, v_row.token, v_row.fingerprint, v_row.expires_at,
                                    v_row.lease_expires_at, v_row.steps, v_row.attempt, v_row.attempts_uncounted,
                                    v_at, p_fingerprint, p_token, p_on_lapse, p_max_attempts);
        if answer <> 'started' then
          raise exception 'give the locks back' using errcode = 'IK000';
        end if;
        -- receive, a reaper and others lock rows without the key's lock. The bound is at least 250 ms: see
        -- _bound_waits_briefly.
        if p_wait_ms > 250 then
          perform :"schema"._bound_waits(v_deadline, 250);
        else
          perform :"schema"._bound_waits_briefly();
        end if;
        if v_row.status is null then
          -- The primary key decides, even against writers that do not take the key's lock.
          insert into :"schema".idempotency_keys as k
            (created_at, expires_at, lease_expires_at, token, status, scope, key, fingerprint, leased)
          values (v_at, v_at + p_retention_ms * interval '1 millisecond',
                  v_at + coalesce(p_lease_ms, p_retention_ms) * interval '1 millisecond',
                  coalesce(p_token, gen_random_uuid()), 1, p_scope, p_key, p_fingerprint,
                  nullif(p_lease_ms is not null, false))
          on conflict (scope, key) do nothing
          returning k.token, 1, false into token, attempt, recovered;
          if found and p_lease_ms is not null then
            perform :"schema"._list_unfinished(p_scope, p_key, v_at + p_lease_ms * interval '1 millisecond',
                                               p_on_lapse, p_max_attempts);
          end if;
        else
          select o.token, o.attempt, o.recovered into token, attempt, recovered
            from :"schema"._overwrite_row(p_scope, p_key, v_row.status, v_row.token, v_row.expires_at, v_row.lease_expires_at,
                                         p_fingerprint, p_retention_ms, p_token, p_lease_ms, p_on_lapse, p_max_attempts) o;
        end if;
        if token is null then
          raise exception 'look again' using errcode = 'IK000';
        end if;
        perform set_config('lock_timeout', v_lock_timeout, true);
        answer := 'started';
        return;
      exception
        when sqlstate 'IK000' then
          continue when answer is null or answer = 'started';
        when lock_not_available then
          answer := 'in_progress'; -- in another open transaction: no lease to report
          return;
        when out_of_memory then
          perform :"schema"._check_locks();
          raise;
      end;
    end if;

    if answer = 'replay' then
      if p_lock_replay then
        begin
          if not :"schema"._lock_replay(p_scope, p_key, v_row.token, v_deadline) then
            answer := null;
          end if;
        exception when lock_not_available then
          answer := 'in_progress';
          return;
        end;
        continue when answer is null;
      end if;
      status := :"schema"._status_word(v_row.status);
      response_code := v_row.response_code;
      response_headers := v_row.response_headers;
      response_body := v_row.response_body;
      response_omitted := v_row.response_omitted;
    elsif answer = 'in_progress' then
      lease_remaining_ms := ceil(extract(epoch from v_row.lease_expires_at - v_at) * 1000)::bigint;
    elsif answer = 'held' then
      held_because := case when p_on_lapse = 'hold' and v_row.token is not null then 'lapsed' else 'attempts' end;
    elsif answer = 'corrupt' then
      perform :"schema"._raise_corrupt();
    end if;
    attempt := coalesce(v_row.attempt, 1);
    return;
  end loop;
  raise exception 'the key is there but cannot be read or written; is there a row-level security policy?'
    using errcode = 'IK003';
end
$pgonce$;
