//! Brings pgonce's schema up to date.

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, PgPool, Row};

use super::environment;
use crate::client::PgOnce;
use crate::error::{Error, ErrorKind, Result, database};
use crate::operation::key::digest_of_parts;
use crate::protocol::files::{FUNCTIONS, MIGRATIONS, SCHEMA_VERSION};
use crate::protocol::schema::SchemaName;
use crate::protocol::statements::{render, statement};

/// What [`PgOnce::migrate`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Migrated {
    /// The schema version before; 0 if there was no schema.
    pub from: u32,
    /// The schema version now.
    pub to: u32,
    /// Whether the functions were replaced; false if everything was up to date.
    pub functions_replaced: bool,
}

/// What the schema says about itself.
struct Found {
    /// 0: there is no pgonce.
    version: u32,
    /// The oldest library that may use it, by schema version.
    serves_from: u32,
    digest: Option<String>,
}

/// The schema version of this library. Goes up with every release that changes anything in `sql/` or `migrations/`.
const VERSION: u32 = 1;
/// The oldest schema that this library can use: that of the previous minor release.
const WORKS_FROM: u32 = 1;
/// The oldest library that can use this schema: that of the previous minor release.
const SERVES_FROM: u32 = 1;

/// The script before the tables and functions. The first lock_timeout waits for other processes that migrate. The
/// second makes a DDL statement give up rather than queue behind a long reader, with all others queued behind it.
/// Views, and functions that are parsed at creation, keep the operators that search_path finds now. PostgreSQL's own
/// notices are not for the reader of this script.
const HEAD: &str = r#"do $pgonce_migrate$
declare
  v_lock_timeout constant pg_catalog.text := pg_catalog.current_setting('lock_timeout');
  v_search_path  constant pg_catalog.text := pg_catalog.current_setting('search_path');
  v_messages     constant pg_catalog.text := pg_catalog.current_setting('client_min_messages');
  v_version      integer := 0;
  v_serves_from  integer;
  v_digest       pg_catalog.text;
begin
  perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
  perform set_config('client_min_messages', 'warning', true);
  perform set_config('lock_timeout', '60s', true);
  perform pg_advisory_xact_lock(hashtextextended('pgonce migrate ' || :'schema', 0));
  perform set_config('lock_timeout', '3s', true);

  if getdatabaseencoding() = 'SQL_ASCII' then
    raise exception 'the encoding of this database is SQL_ASCII, which does not tell characters; pgonce needs another one'
      using errcode = 'IK006';
  end if;
  -- Not `create schema if not exists`, which asks for rights on the database even when it exists.
  if to_regnamespace(quote_ident(:'schema')) is null then
    create schema :"schema";
  end if;
  if to_regclass(':"schema".migrations') is not null then
    raise exception 'schema % was made by an unreleased version of pgonce; drop it, and migrate again', :'schema'
      using errcode = 'IK006';
  end if;
  if to_regprocedure(':"schema".schema_version()') is not null then
    select version, serves_from, digest into v_version, v_serves_from, v_digest from :"schema".schema_version();
  end if;
  if v_version > :version and v_serves_from > :version then
    raise exception 'schema % has version %, which serves libraries of version % and newer; this one has :version: update pgonce',
      :'schema', v_version, v_serves_from using errcode = 'IK007';
  elsif v_version > :version or v_version = :version and v_digest = :digest then
    perform set_config('client_min_messages', v_messages, true);
    raise notice 'schema % is up to date (version %); nothing was done', :'schema', v_version;
  else
"#;
const TAIL: &str = r#"
  end if;
  perform set_config('client_min_messages', v_messages, true);
  perform set_config('lock_timeout', v_lock_timeout, true);
  perform set_config('search_path', v_search_path, true);
end
$pgonce_migrate$;
"#;

impl PgOnce {
    /// Creates the schema or brings it up to date. Does nothing if it is up to date, or if a newer release has migrated
    /// it and it still serves this one.
    ///
    /// The migration is one statement, and so one transaction: all of it is applied or nothing. Any number of processes
    /// may migrate at once. The only advisory lock is transaction-scoped, so poolers in transaction mode work. Waits at
    /// most 60 s for other migrations, and 3 s for a table lock.
    ///
    /// ```no_run
    /// # async fn example(pool: sqlx::PgPool) -> Result<(), Box<dyn std::error::Error>> {
    /// let once = pgonce::PgOnce::new();
    /// once.migrate(&mut *pool.acquire().await?).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`SchemaTooNew`](ErrorKind::SchemaTooNew) if a newer library has migrated the schema and it does not serve this
    /// one; [`SchemaOutdated`](ErrorKind::SchemaOutdated), with the reason, for a schema that no release has made, and
    /// for a database in SQL_ASCII; a retryable [`Database`](ErrorKind::Database) error (55P03) if another session kept
    /// a lock; other errors of the database, such as missing rights.
    ///
    /// # Cancel safety
    /// Cancel safe: the migration is applied as a whole or not at all.
    pub async fn migrate(&self, conn: &mut PgConnection) -> Result<Migrated> {
        let found = self.found(conn).await?;
        self.refuse_too_new(&found)?;
        let from = found.version;
        if from > VERSION || self.is_current(&found) {
            return Ok(Migrated { from, to: from, functions_replaced: false });
        }
        let sql = statement(&self.schema, &script(&self.schema));
        sqlx::raw_sql(sql).execute(&mut *conn).await.map_err(database)?;
        // If a newer release was faster, the script has done nothing.
        let to = self.found(conn).await?.version;
        Ok(Migrated { from, to, functions_replaced: to == VERSION })
    }

    /// The SQL that [`migrate`](PgOnce::migrate) runs, for your own migration tool: one statement, for a schema of any
    /// version or none. On a schema that is up to date, or that a newer release has migrated and still serves this one,
    /// it does nothing and says so in a notice.
    ///
    /// ```
    /// let sql = pgonce::PgOnce::new().migration_sql();
    /// assert!(sql.contains(r#"create table "pgonce".idempotency_keys"#));
    /// ```
    #[must_use]
    pub fn migration_sql(&self) -> String {
        render(&self.schema, &script(&self.schema))
    }

    /// Checks at start-up that schema, database, session settings and pooler fit this library.
    ///
    /// The schema fits if it is from the library's own release, or from one at most a minor version older or newer: a
    /// deployment may migrate before or after it replaces its processes, and may roll them back.
    ///
    /// If the [audit trail](PgOnce::audit_on) is on, its triggers must fire, and today and tomorrow have a partition.
    ///
    /// The rest fits if prepared statements can be trusted behind the pooler, if there is one, and no session default
    /// breaks a promise ([operations](crate::_docs::operations)). To detect a pooler takes two connections: a pool of
    /// one skips this check. A busy pooler can go undetected.
    ///
    /// ```no_run
    /// # async fn example(pool: sqlx::PgPool) -> Result<(), Box<dyn std::error::Error>> {
    /// let once = pgonce::PgOnce::new();
    /// once.check(&pool).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`SchemaOutdated`](ErrorKind::SchemaOutdated) if the schema is missing, too old, or not what this release
    /// installs (for example after a rename); [`SchemaTooNew`](ErrorKind::SchemaTooNew) if it is too new;
    /// [`Environment`](ErrorKind::Environment), which names every problem and its cure.
    ///
    /// # Cancel safety
    /// Cancel safe: it only reads.
    pub async fn check(&self, pool: &PgPool) -> Result<()> {
        let audit = {
            let mut conn = pool.acquire().await.map_err(database)?;
            self.check_schema(&mut conn).await?;
            self.audit_problem(&mut conn).await?
        };
        let mut problems = environment::problems(pool).await?;
        problems.extend(audit);
        match problems.is_empty() {
            true => Ok(()),
            false => Err(Error::new(ErrorKind::Environment, problems.join("; "))),
        }
    }

    async fn audit_problem(&self, conn: &mut PgConnection) -> Result<Option<String>> {
        let row = self.ask_simply(conn, r#"select :"schema"._audit_problem() as problem"#).await?;
        row.try_get("problem").map_err(database)
    }

    async fn check_schema(&self, conn: &mut PgConnection) -> Result<()> {
        let found = self.found(conn).await?;
        self.refuse_too_new(&found)?;
        let (schema, version) = (self.schema.as_str(), found.version);
        let problem = match fit(&found, VERSION, WORKS_FROM) {
            Fit::Missing => format!("there is no pgonce in schema {schema}; run migrate"),
            Fit::TooOld => format!(
                "schema {schema} has version {version}, this library needs {WORKS_FROM} to {VERSION}; run migrate"
            ),
            _ if version == VERSION && !self.is_current(&found) => format!(
                "schema {schema} is not as version {version} installs it (was it renamed, or the server upgraded?); \
                 run migrate"
            ),
            _ => return Ok(()),
        };
        Err(Error::new(ErrorKind::SchemaOutdated, problem))
    }

    /// Asks in the simple protocol, so that migrate and check work through every pooler, also through one that loses
    /// prepared statements between transactions.
    async fn found(&self, conn: &mut PgConnection) -> Result<Found> {
        // Two questions: naming a missing function would abort the caller's transaction. The volatile function keeps a
        // proxy from asking a standby, which may lag.
        let exists = "select pg_catalog.clock_timestamp(),
                              pg_catalog.to_regprocedure(pg_catalog.format('%I.schema_version()', :'schema')) is not null as there,
                             pg_catalog.to_regclass(pg_catalog.format('%I.migrations', :'schema')) is not null as unreleased";
        let row = self.ask_simply(conn, exists).await?;
        if row.try_get::<bool, _>("unreleased").map_err(database)? {
            let schema = self.schema.as_str();
            return Err(Error::new(
                ErrorKind::SchemaOutdated,
                format!(
                    "schema {schema} was made by an unreleased version of pgonce; drop it, and migrate again"
                ),
            ));
        }
        if !row.try_get::<bool, _>("there").map_err(database)? {
            return Ok(Found { version: 0, serves_from: 0, digest: None });
        }
        let says = r#"select version, serves_from, digest from :"schema".schema_version()"#;
        let row = self.ask_simply(conn, says).await?;
        let number =
            |column| row.try_get::<i32, _>(column).map(i32::unsigned_abs).map_err(database);
        Ok(Found {
            version: number("version")?,
            serves_from: number("serves_from")?,
            digest: row.try_get("digest").map_err(database)?,
        })
    }

    pub(crate) async fn ask_simply(
        &self,
        conn: &mut PgConnection,
        template: &str,
    ) -> Result<PgRow> {
        let sql = statement(&self.schema, template);
        sqlx::raw_sql(sql).fetch_one(conn).await.map_err(database)
    }

    fn is_current(&self, found: &Found) -> bool {
        found.version == VERSION && found.digest.as_deref() == Some(&digest(&self.schema))
    }

    fn refuse_too_new(&self, found: &Found) -> Result<()> {
        if fit(found, VERSION, WORKS_FROM) == Fit::TooNew {
            let (schema, version, serves) =
                (self.schema.as_str(), found.version, found.serves_from);
            return Err(Error::new(
                ErrorKind::SchemaTooNew,
                format!(
                    "schema {schema} has version {version}, which serves libraries of version {serves} and newer; \
                     this one has {VERSION}: update pgonce"
                ),
            ));
        }
        Ok(())
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Fit {
    Missing,
    TooOld,
    Fits,
    TooNew,
}

/// For a library of this schema version that can use schemas from `works_from` on. A newer schema says which older
/// libraries it serves.
fn fit(found: &Found, version: u32, works_from: u32) -> Fit {
    match found.version {
        0 => Fit::Missing,
        older if older < works_from => Fit::TooOld,
        newer if newer > version && found.serves_from > version => Fit::TooNew,
        _ => Fit::Fits,
    }
}

/// Covers all that is installed, and the schema's name: a renamed schema has another digest.
fn digest(schema: &SchemaName) -> String {
    let tables = MIGRATIONS.iter().map(|(_, _, sql)| *sql);
    let functions = FUNCTIONS.iter().map(|(_, sql)| *sql);
    let texts = tables.chain(functions).chain([SCHEMA_VERSION]).map(|sql| render(schema, sql));
    let digest = digest_of_parts(b"pgonce schema", texts);
    digest[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One statement, so that any tool applies it as a whole or not at all.
fn script(schema: &SchemaName) -> String {
    let mut sql = format!("-- pgonce: schema :\"schema\", version {VERSION}\n{HEAD}");
    for (version, name, text) in MIGRATIONS {
        sql.push_str(&format!(
            "\n  if v_version < {version} then\n    execute $pgonce_file$\n-- {name}\n{text}$pgonce_file$;\n  end if;\n"
        ));
    }
    for (name, text) in FUNCTIONS.iter().copied().chain([("public/schema_version", SCHEMA_VERSION)])
    {
        sql.push_str(&format!("\n    execute $pgonce_file$\n-- {name}\n{text}$pgonce_file$;\n"));
    }
    sql.push_str(TAIL);
    sql.replace(":version", &VERSION.to_string())
        .replace(":serves_from", &SERVES_FROM.to_string())
        .replace(":digest", &format!("'{}'", digest(schema)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_and_a_schema_fit_when_they_are_a_minor_version_apart() {
        // A made-up release that installs version 3 and works on 2.
        let fits = |version, serves_from| fit(&Found { version, serves_from, digest: None }, 3, 2);
        assert_eq!(fits(0, 0), Fit::Missing);
        assert_eq!(fits(1, 1), Fit::TooOld, "two releases old");
        assert_eq!(fits(2, 1), Fit::Fits, "its processes may be replaced before the migration");
        assert_eq!(fits(3, 2), Fit::Fits);
        assert_eq!(
            fits(4, 3),
            Fit::Fits,
            "the migration may come before its processes are replaced"
        );
        assert_eq!(fits(5, 4), Fit::TooNew);
    }
}
