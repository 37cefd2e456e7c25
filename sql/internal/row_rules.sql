-- What a row says about its key. Each rule is here once; all other code calls it.

-- pgonce never writes such a row, and never replays it, runs it again or deletes it.
create or replace function :"schema"._is_corrupt(
  p_status smallint, p_expires_at timestamptz, p_lease_expires_at timestamptz)
returns boolean
language sql immutable parallel safe
return p_status not in (1, 2, 3) or not isfinite(p_expires_at)
  or coalesce(not isfinite(p_lease_expires_at), p_status = 1);

-- The claim is live: its holder may be at work.
create or replace function :"schema"._is_live(
  p_status smallint, p_token uuid, p_lease_expires_at timestamptz, p_at timestamptz)
returns boolean
language sql immutable parallel safe
return p_status = 1 and p_token is not null and p_lease_expires_at > p_at;

-- The holder has given the claim back.
create or replace function :"schema"._is_released(p_status smallint, p_token uuid) returns boolean
language sql immutable parallel safe
return p_status = 1 and p_token is null;

-- Released without steps: another request may use the key.
create or replace function :"schema"._is_free(p_status smallint, p_token uuid, p_steps integer) returns boolean
language sql immutable parallel safe
return :"schema"._is_released(p_status, p_token) and coalesce(p_steps, 0) = 0;

create or replace function :"schema"._is_finished(p_status smallint) returns boolean
language sql immutable parallel safe
return p_status in (2, 3);

-- The key is bound to another request. Fingerprints compare only within one algorithm and secret: their first four
-- bytes.
create or replace function :"schema"._is_mismatch(p_fingerprint bytea, p_row_fingerprint bytea) returns boolean
language sql immutable parallel safe
return p_fingerprint <> p_row_fingerprint and substr(p_fingerprint, 1, 4) = substr(p_row_fingerprint, 1, 4);

create or replace function :"schema"._is_same(p_row_token uuid, p_token uuid) returns boolean
language sql immutable parallel safe
return p_row_token = p_token;

create or replace function :"schema"._is_leased_at(p_lease_expires_at timestamptz, p_at timestamptz) returns boolean
language sql immutable parallel safe
return p_lease_expires_at > p_at;

-- A key that lapsed, or was released with steps, waits for an operator.
create or replace function :"schema"._is_held(
  p_token uuid, p_attempt integer, p_attempts_uncounted integer, p_on_lapse text, p_max_attempts integer)
returns boolean
language sql immutable parallel safe
return p_on_lapse = 'hold' and p_token is not null
  or coalesce(p_attempt, 1) - coalesce(p_attempts_uncounted, 0) >= p_max_attempts;

-- Returns why a key is held, as a word: `lapsed` under the policy hold, or its `attempts` are used up. Null: it is not.
create or replace function :"schema"._held_because(
  p_token uuid, p_attempt integer, p_attempts_uncounted integer, p_on_lapse text, p_max_attempts integer)
returns text
language sql immutable parallel safe
return case when not coalesce(:"schema"._is_held(p_token, p_attempt, p_attempts_uncounted, p_on_lapse, p_max_attempts), false)
            then null
            when p_on_lapse = 'hold' and p_token is not null then 'lapsed'
            else 'attempts' end;

-- The key is past its retention: begin treats it as new, and reap may delete it. A live claim is never forgotten.
create or replace function :"schema"._is_forgotten(
  p_status smallint, p_expires_at timestamptz, p_lease_expires_at timestamptz, p_at timestamptz)
returns boolean
language sql immutable parallel safe
return p_expires_at <= p_at and (p_status <> 1 or p_lease_expires_at <= p_at);

-- Unfinished work without a holder that should continue: its claim lapsed, or was released with steps recorded, by an
-- operator, or after a postponed attempt. Not a corrupt row: begin refuses it.
create or replace function :"schema"._is_abandoned(
  p_status smallint, p_token uuid, p_lease_expires_at timestamptz, p_steps integer, p_attempts_uncounted integer,
  p_expires_at timestamptz, p_at timestamptz)
returns boolean
language sql immutable parallel safe
return p_status = 1 and p_expires_at > p_at and p_lease_expires_at <= p_at
  and (p_token is not null or coalesce(p_steps, 0) > 0 or p_attempts_uncounted is not null)
  and not :"schema"._is_corrupt(p_status, p_expires_at, p_lease_expires_at);

-- Returns the status as a word.
create or replace function :"schema"._status_word(p_status smallint) returns text
language sql immutable parallel safe
return case p_status when 1 then 'in_progress' when 2 then 'completed' when 3 then 'failed' else 'corrupt' end;

-- Returns what an unfinished key waits for, as a word; null if it is finished.
create or replace function :"schema"._claim_word(
  p_status smallint, p_token uuid, p_lease_expires_at timestamptz, p_at timestamptz)
returns text
language sql immutable parallel safe
return case when p_status <> 1 then null
            when p_token is null then 'released'
            when p_lease_expires_at > p_at then 'live'
            else 'lapsed' end;

-- Returns the state of an unfinished leased key as a word: `live` (its holder is at work), `held` (waits for an
-- operator), `abandoned` (the next begin or a recovery continues it) or `free` (given back with nothing done). Null: it
-- is finished, forgotten or corrupt.
create or replace function :"schema"._unfinished_word(
  p_status smallint, p_token uuid, p_lease_expires_at timestamptz, p_steps integer, p_attempts_uncounted integer,
  p_expires_at timestamptz, p_held_because text, p_at timestamptz)
returns text
language sql immutable parallel safe
return case when p_status <> 1 or :"schema"._is_corrupt(p_status, p_expires_at, p_lease_expires_at)
              or :"schema"._is_forgotten(p_status, p_expires_at, p_lease_expires_at, p_at) then null
            when :"schema"._is_live(p_status, p_token, p_lease_expires_at, p_at) then 'live'
            when not :"schema"._is_abandoned(p_status, p_token, p_lease_expires_at, p_steps, p_attempts_uncounted,
                                             p_expires_at, p_at) then 'free'
            when p_held_because is not null then 'held'
            else 'abandoned' end;

-- The key may be a message: it is bound to no request, has no steps, and its attempts are limited.
create or replace function :"schema"._is_message(p_fingerprint bytea, p_steps integer, p_max_attempts integer)
returns boolean
language sql immutable parallel safe
return p_fingerprint is null and coalesce(p_steps, 0) = 0 and p_max_attempts is not null;

-- Returns a digest of what an operator saw of a key. take_over_claim, revoke_claim and redrive_message refuse the key
-- if it differs. The views show it instead of the token, with which a reader could finish the claim.
create or replace function :"schema"._seen(p_status smallint, p_token uuid, p_attempt integer, p_created_at timestamptz)
returns text
language sql stable parallel safe
return substr(encode(sha256(coalesce(uuid_send(p_token), '') || int4send(coalesce(p_attempt, 1))
                            || int2send(p_status) || timestamptz_send(p_created_at)), 'hex'), 1, 16);
