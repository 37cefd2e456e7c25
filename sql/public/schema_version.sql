-- Returns what is installed. Part of the schema, so that a dump without data includes it. version: the schema version.
-- serves_from: the oldest schema version whose library may work on it. digest: of the text of everything installed;
-- null if the views must be created again, after an upgrade from a server without security_invoker. Volatile, so that
-- proxies ask the primary.
create or replace function :"schema".schema_version(out version integer, out serves_from integer, out digest text)
language sql volatile
set search_path = pg_catalog, pg_temp
as $pgonce$
  select :version, :serves_from,
         case when current_setting('server_version_num')::integer < 150000
                or 2 = (select count(*) from pg_class c
                         where c.oid in (to_regclass(':"schema".keys'), to_regclass(':"schema".abandoned'))
                           and c.reloptions @> array['security_invoker=true'])
              then :digest end
$pgonce$;
comment on function :"schema".schema_version is
  'Returns the installed schema version, the oldest version that it serves, and a digest of the installed text.';
