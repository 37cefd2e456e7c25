-- Adds a line to the audit trail of a key: for what changes no row, such as looking at a stored response. p_action: one to
-- 40 lower-case letters and spaces, and none of the trail's own words. Does nothing if the trail is off. The line commits
-- with the caller's transaction. Every role may add one, because it says who added it.
create or replace function :"schema".audit_note(p_action text, p_scope text, p_key text) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $pgonce$
begin
  if p_action is null or p_action collate "C" !~ '^[a-z][a-z ]{0,39}$' then
    raise exception 'action takes 1 to 40 lower-case letters and spaces' using errcode = 'IK001';
  elsif p_action in ('begun', 'completed', 'failed', 'released', 'taken over', 'lapsed', 'revoked', 'redriven', 'reaped',
                     'changed', 'deleted', 'truncated') then
    raise exception 'action is a word of the trail itself' using errcode = 'IK001';
  end if;
  perform :"schema"._check_name('scope', p_scope);
  perform :"schema"._check_name('key', p_key);
  if :"schema".audit_days_kept() is null then
    return;
  end if;
  insert into :"schema".audit (at, attempt, action, seen, scope, key)
  select :"schema"._clock(), coalesce(k.attempt, 1), p_action,
         coalesce(:"schema"._seen(k.status, k.token, k.attempt, k.created_at), ''), p_scope, p_key
    from (values (1)) one(row)
    left join :"schema".idempotency_keys k on k.scope = p_scope collate "C" and k.key = p_key collate "C";
end
$pgonce$;
comment on function :"schema".audit_note is
  'Adds a line to the audit trail of a key, if the trail is on.';
