-- complete and fail write a new version of a row that begin has written. What is left free lets it be put beside the
-- old one, so that no index gets an entry (HOT), also on pages that the reaper has emptied in part. Rows that are
-- there stay where they are. Whoever has set it already keeps it.
do $pgonce$
begin
  if not exists (select from pg_class c, unnest(c.reloptions) o
                  where c.oid = ':"schema".idempotency_keys'::regclass and o like 'fillfactor=%') then
    alter table :"schema".idempotency_keys set (fillfactor = 95);
  end if;
exception when lock_not_available then
  null; -- a vacuum has the table for longer than this may wait; nothing depends on it, and an upgrade need not fail
end
$pgonce$;
