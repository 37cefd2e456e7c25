-- What a row says about its key. One text per rule; everything else asks these.

-- Nothing of pgonce writes such a row. It is neither replayed, nor run again, nor deleted.
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

-- The same with nothing done: another request may use the key.
create or replace function :"schema"._is_free(p_status smallint, p_token uuid, p_steps integer) returns boolean
language sql immutable parallel safe
return :"schema"._is_released(p_status, p_token) and coalesce(p_steps, 0) = 0;

create or replace function :"schema"._is_finished(p_status smallint) returns boolean
language sql immutable parallel safe
return p_status in (2, 3);

-- The key is bound to another request. Fingerprints compare only within one algorithm and secret: their first four bytes.
create or replace function :"schema"._is_mismatch(p_fingerprint bytea, p_row_fingerprint bytea) returns boolean
language sql immutable parallel safe
return p_fingerprint <> p_row_fingerprint and substr(p_fingerprint, 1, 4) = substr(p_row_fingerprint, 1, 4);

create or replace function :"schema"._is_same(p_row_token uuid, p_token uuid) returns boolean
language sql immutable parallel safe
return p_row_token = p_token;

create or replace function :"schema"._is_leased_at(p_lease_expires_at timestamptz, p_at timestamptz) returns boolean
language sql immutable parallel safe
return p_lease_expires_at > p_at;

-- A lapsed claim that waits for an operator.
create or replace function :"schema"._is_held(
  p_token uuid, p_attempt integer, p_attempts_uncounted integer, p_on_lapse text, p_max_attempts integer)
returns boolean
language sql immutable parallel safe
return p_on_lapse = 'hold' and p_token is not null
  or coalesce(p_attempt, 1) - coalesce(p_attempts_uncounted, 0) >= p_max_attempts;

-- The key is past its retention: begin takes it for new, and reap may delete it. A live claim is never forgotten.
create or replace function :"schema"._is_forgotten(
  p_status smallint, p_expires_at timestamptz, p_lease_expires_at timestamptz, p_at timestamptz)
returns boolean
language sql immutable parallel safe
return p_expires_at <= p_at and (p_status <> 1 or p_lease_expires_at <= p_at);

-- An unfinished key that nobody works on, and that is to go on: its claim lapsed, or it was released with steps
-- recorded or by an operator. Not a corrupt one: every begin would refuse it.
create or replace function :"schema"._is_abandoned(
  p_status smallint, p_token uuid, p_lease_expires_at timestamptz, p_steps integer, p_attempts_uncounted integer,
  p_expires_at timestamptz, p_at timestamptz)
returns boolean
language sql immutable parallel safe
return p_status = 1 and p_expires_at > p_at and p_lease_expires_at <= p_at
  and (p_token is not null or coalesce(p_steps, 0) > 0 or p_attempts_uncounted is not null)
  and not :"schema"._is_corrupt(p_status, p_expires_at, p_lease_expires_at);

-- The status in words.
create or replace function :"schema"._status_word(p_status smallint) returns text
language sql immutable parallel safe
return case p_status when 1 then 'in_progress' when 2 then 'completed' when 3 then 'failed' else 'corrupt' end;

-- What an unfinished key waits for, in words; null when it is finished.
create or replace function :"schema"._claim_word(
  p_status smallint, p_token uuid, p_lease_expires_at timestamptz, p_at timestamptz)
returns text
language sql immutable parallel safe
return case when p_status <> 1 then null
            when p_token is null then 'released'
            when p_lease_expires_at > p_at then 'live'
            else 'lapsed' end;

-- A digest of what an operator was shown of a key. Release, resolve and redrive refuse any other. It stands in the
-- views for the token, which would let its reader finish the claim.
create or replace function :"schema"._seen(p_status smallint, p_token uuid, p_attempt integer, p_created_at timestamptz)
returns text
language sql stable parallel safe
return substr(encode(sha256(coalesce(uuid_send(p_token), '') || int4send(coalesce(p_attempt, 1))
                            || int2send(p_status) || timestamptz_send(p_created_at)), 'hex'), 1, 16);
