-- The triggers of the audit trail: one line per transition of a key, derived from its row before and after, so that any
-- release's functions, and writes by hand, leave lines. Extended leases, steps and progress leave none. The lines commit or
-- roll back with the transition.
--
-- security definer: only the owner has rights on the table, so no other role can change, delete or forge lines. No other
-- role may make a trigger with these functions, which would forge lines too. Role, actor and transaction are defaults of
-- the table's columns.
--
-- Pinning search_path would cost a third of a line. So the two functions of the hot path contain no operator, and no
-- name without a schema: the helpers are inlined, with the operators of their creation.

-- Which transition the insert of a row is.
create or replace function :"schema"._action_of_insert(p_status smallint) returns text
language sql immutable parallel safe
return case p_status when 1 then 'begun' when 2 then 'completed' when 3 then 'failed' else 'changed' end;

-- Which transition the update of a row is. p_was_*: before.
create or replace function :"schema"._action_of_update(
  p_was_status smallint, p_status smallint, p_was_created_at timestamptz, p_created_at timestamptz,
  p_was_token uuid, p_token uuid, p_was_attempt integer, p_attempt integer,
  p_was_uncounted integer, p_uncounted integer, p_was_lease_end timestamptz, p_lease_end timestamptz, p_leased boolean)
returns text
language sql immutable parallel safe
return case
  when p_was_status = 1 and p_status = 2 then 'completed'
  when p_was_status = 1 and p_status = 3 then 'failed'
  when p_status <> 1 then 'changed'
  when p_created_at <> p_was_created_at then 'begun' -- a forgotten or free key
  when p_was_status <> 1 then 'redriven'
  when p_token is null and p_was_token is not null
    then case when p_uncounted is distinct from p_was_uncounted or p_lease_end > p_was_lease_end then 'revoked'
              else 'released' end
  when p_token is distinct from p_was_token
    then case when p_was_token is null or p_attempt > coalesce(p_was_attempt, 1) then 'taken over'
              -- In the same attempt, by an operator, or given up by the holder. take_over_claim has a leased claim lapse
              -- later than before, and leaves another's end; _lapse does neither.
              when p_leased and p_lease_end > p_was_lease_end then 'taken over'
              when p_leased is not true and p_lease_end = p_was_lease_end then 'taken over'
              else 'lapsed' end
  when p_uncounted is distinct from p_was_uncounted then 'redriven'
  else 'changed' end;

create or replace function :"schema"._audit_inserted() returns trigger
language plpgsql volatile security definer
as $pgonce$
begin
  insert into :"schema".audit (at, attempt, action, seen, scope, key)
  select :"schema"._clock(), coalesce(n.attempt, 1), :"schema"._action_of_insert(n.status),
         :"schema"._seen(n.status, n.token, n.attempt, n.created_at), n.scope, n.key
    from new_rows n;
  return null;
end
$pgonce$;

-- Called if something else than lease, steps, progress or last error has changed.
create or replace function :"schema"._audit_updated() returns trigger
language plpgsql volatile security definer
as $pgonce$
begin
  insert into :"schema".audit (at, attempt, action, seen, scope, key)
  values (:"schema"._clock(), coalesce(new.attempt, 1),
          :"schema"._action_of_update(
            old.status, new.status, old.created_at, new.created_at, old.token, new.token, old.attempt, new.attempt,
            old.attempts_uncounted, new.attempts_uncounted, old.lease_expires_at, new.lease_expires_at, new.leased),
          :"schema"._seen(new.status, new.token, new.attempt, new.created_at), new.scope, new.key);
  return null;
end
$pgonce$;

-- Called if a key got another name: a line under the old one.
create or replace function :"schema"._audit_renamed() returns trigger
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $pgonce$
begin
  insert into :"schema".audit (at, attempt, action, seen, scope, key)
  values (:"schema"._clock(), coalesce(old.attempt, 1), 'changed',
          :"schema"._seen(old.status, old.token, old.attempt, old.created_at), old.scope, old.key);
  return null;
end
$pgonce$;

create or replace function :"schema"._audit_deleted() returns trigger
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $pgonce$
declare
  v_at constant timestamptz := :"schema"._clock();
begin
  insert into :"schema".audit (at, attempt, action, seen, scope, key)
  select v_at, coalesce(o.attempt, 1),
         case when :"schema"._is_forgotten(o.status, o.expires_at, o.lease_expires_at, v_at) then 'reaped' else 'deleted' end,
         :"schema"._seen(o.status, o.token, o.attempt, o.created_at), o.scope, o.key
    from old_rows o;
  return null;
end
$pgonce$;

create or replace function :"schema"._audit_truncated() returns trigger
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $pgonce$
begin
  insert into :"schema".audit (at, attempt, action, seen, scope, key)
  values (:"schema"._clock(), 0, 'truncated', '', '', '');
  return null;
end
$pgonce$;

-- On the trail itself.
create or replace function :"schema"._audit_refused() returns trigger
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $pgonce$
begin
  raise exception 'the audit trail is append-only' using errcode = '42501';
end
$pgonce$;

revoke all on function :"schema"._audit_inserted(), :"schema"._audit_updated(), :"schema"._audit_renamed(),
                       :"schema"._audit_deleted(), :"schema"._audit_truncated() from public;
