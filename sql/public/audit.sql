-- Returns the audit trail of one key, oldest line first: its last p_limit lines (1 to 10000). action: begun, completed,
-- failed, released, taken over, lapsed (given up before its lease ended, or an attempt counted), revoked, redriven,
-- reaped; changed or deleted by hand; or the action of a note. seen: as `keys` showed the key then. Needs the right to
-- read the table `audit`.
create or replace function :"schema".audit(p_scope text, p_key text, p_limit integer default 1000)
returns table (
  at timestamptz, action text, attempt integer, role text, actor text, seen text, txid bigint)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $pgonce$
begin
  perform :"schema"._check_range('limit', p_limit, 1, 10000);
  return query
  select l.at, l.action, l.attempt, l.role, l.actor, l.seen, l.txid
    from (
      select a.* from :"schema".audit a
       where a.scope = p_scope collate "C" and a.key = p_key collate "C"
       order by a.id desc
       limit p_limit) l
   order by l.id;
end
$pgonce$;
comment on function :"schema".audit is
  'Returns the audit trail of one key, if the trail is on.';
