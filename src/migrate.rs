//! Bringing pgonce's schema up to date.

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};

use crate::error::{Error, ErrorKind, Result, database, sqlstate_in};
use crate::key::digest_of_parts;
use crate::once::PgOnce;
use crate::sql::{FUNCTIONS, MIGRATIONS, render, statement};

/// What [`PgOnce::migrate`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Migrated {
    /// The schema version found; 0 when there was no schema.
    pub from: u32,
    /// The schema version now.
    pub to: u32,
    /// Whether the functions were replaced; false when everything was up to date.
    pub functions_replaced: bool,
}

/// What the schema says about itself.
struct Found {
    version: u32,
    functions: Option<String>,
}

/// How often migrate looks again after another process was faster.
const LOOKS_MAX: u32 = 10;
/// Comes after every migration, for callers whose transaction goes on.
const RESTORE: &str =
    "select set_config('lock_timeout', coalesce(nullif(current_setting('pgonce.outer_lock_timeout', true), ''),
                                           current_setting('lock_timeout')), true),
        set_config('search_path', current_setting('pgonce.outer_search_path'), true);\n";
/// Comes before every migration. The first lock_timeout is patience with other migrating processes,
/// the second makes a DDL statement give up rather than queue behind a long reader with everybody
/// else queued behind it. Views, and functions that are parsed when they are made, keep the operators they find.
const PREAMBLE: &str = r#"select pg_catalog.set_config('pgonce.outer_lock_timeout', pg_catalog.current_setting('lock_timeout'), true),
       pg_catalog.set_config('pgonce.outer_search_path', pg_catalog.current_setting('search_path'), true);
set local search_path = pg_catalog, pg_temp;
set local lock_timeout = '60s';
select pg_advisory_xact_lock(hashtextextended('pgonce migrate ' || :'schema', 0));
set local lock_timeout = '3s';
do $pgonce$
begin
  -- Not `create schema if not exists`, which asks for rights on the database even when it exists.
  if to_regnamespace(:'schema') is null then
    create schema :"schema";
  end if;
end
$pgonce$;
create table if not exists :"schema".migrations (
  version    integer primary key, -- 0 stands for the functions
  name       text not null,
  digest     text,
  applied_at timestamptz not null default now()
);
"#;

impl PgOnce {
    /// Creates the schema or brings it up to date. Does nothing when it is.
    ///
    /// One message, and so one transaction, per call: all of it is applied or nothing. Any number of
    /// processes may call it at once. Takes only a transaction-scoped advisory lock, so it works
    /// through a pooler in transaction mode, and keeps its books in its own schema, away from
    /// `_sqlx_migrations`. Waits at most 3 s for a table lock.
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
    /// [`SchemaTooNew`](ErrorKind::SchemaTooNew) when a newer library has migrated the schema;
    /// a retryable [`Database`](ErrorKind::Database) error (55P03) when a lock was not to be had;
    /// what the database answers, for example for missing rights.
    ///
    /// # Cancel safety
    /// Cancel safe: dropped, the migration is applied whole or not at all.
    pub async fn migrate(&self, conn: &mut PgConnection) -> Result<Migrated> {
        let mut raced = None;
        for _ in 0..LOOKS_MAX {
            let found = match (self.found(conn).await, raced) {
                // In the caller's transaction, which the race has aborted: only the caller can go on.
                (Err(error), Some(race)) if error.sqlstate().as_deref() == Some("25P02") => {
                    return Err(race);
                }
                (found, _) => found?,
            };
            refuse_newer(&found)?;
            let mut migrated =
                Migrated { from: found.version, to: latest(), functions_replaced: false };
            if found.is_current() {
                return Ok(migrated);
            }
            let sql = statement(&self.schema, &template(found.version));
            match sqlx::raw_sql(sql).execute(&mut *conn).await.map_err(database) {
                Ok(_) => {
                    migrated.functions_replaced = true;
                    return Ok(migrated);
                }
                // Its row is there already, or changed under us: another process was faster. Look again.
                Err(error) if matches!(sqlstate_in(&error), Some("23505" | "40001")) => {
                    raced = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        Err(Error::new(ErrorKind::Database, "other processes kept changing the schema"))
    }

    /// The SQL that [`migrate`](PgOnce::migrate) would run on a schema of version `from` (0: none),
    /// for people who apply it with their own tool. Run it in one transaction.
    ///
    /// ```
    /// let sql = pgonce::PgOnce::new().migration_sql(0);
    /// assert!(sql.contains(r#"create table "pgonce".idempotency_keys"#));
    /// ```
    #[must_use]
    pub fn migration_sql(&self, from: u32) -> String {
        render(&self.schema, &template(from))
    }

    /// Checks that the schema is the one this library was made for. For start-up.
    ///
    /// # Errors
    /// [`SchemaOutdated`](ErrorKind::SchemaOutdated) when it is missing or older,
    /// [`SchemaTooNew`](ErrorKind::SchemaTooNew) when it is newer.
    ///
    /// # Cancel safety
    /// Cancel safe: it only reads.
    pub async fn check(&self, conn: &mut PgConnection) -> Result<()> {
        let found = self.found(conn).await?;
        refuse_newer(&found)?;
        if !found.is_current() {
            let (schema, version) = (self.schema.as_str(), found.version);
            let latest = latest();
            return Err(Error::new(
                ErrorKind::SchemaOutdated,
                match version {
                    0 => format!("there is no pgonce in schema {schema}; run migrate"),
                    v if v == latest => {
                        format!("schema {schema} has other functions of version {v}; run migrate")
                    }
                    v => format!(
                        "schema {schema} has version {v}, this library needs {latest}; run migrate"
                    ),
                },
            ));
        }
        Ok(())
    }

    /// Asks in the simple protocol, without a prepared statement: migrate and check work through
    /// every pooler, also those that lose prepared statements between transactions.
    async fn found(&self, conn: &mut PgConnection) -> Result<Found> {
        // Two questions, because naming a missing table would abort a caller's transaction.
        let exists = "select pg_catalog.to_regclass(pg_catalog.format('%s.migrations', :'schema')) is not null as there";
        let row = self.ask_simply(conn, exists).await?;
        if !row.try_get::<bool, _>("there").map_err(database)? {
            return Ok(Found { version: 0, functions: None });
        }
        let books = r#"select coalesce(pg_catalog.max(version), 0) as version,
                              pg_catalog.max(digest) filter (where version operator(pg_catalog.=) 0) as functions
                         from :"schema".migrations"#;
        let row = self.ask_simply(conn, books).await?;
        let version: i32 = row.try_get("version").map_err(database)?;
        Ok(Found {
            version: version.unsigned_abs(),
            functions: row.try_get("functions").map_err(database)?,
        })
    }

    async fn ask_simply(&self, conn: &mut PgConnection, template: &str) -> Result<PgRow> {
        let sql = statement(&self.schema, template);
        sqlx::raw_sql(sql).fetch_one(conn).await.map_err(database)
    }
}

impl Found {
    fn is_current(&self) -> bool {
        self.version == latest() && self.functions.as_deref() == Some(&functions_digest())
    }
}

fn refuse_newer(found: &Found) -> Result<()> {
    if found.version > latest() {
        return Err(Error::new(
            ErrorKind::SchemaTooNew,
            format!(
                "the schema has version {}, this library knows up to {}; update pgonce",
                found.version,
                latest()
            ),
        ));
    }
    Ok(())
}

/// The schema version of this library.
#[allow(clippy::cast_possible_truncation, reason = "a short list")]
fn latest() -> u32 {
    MIGRATIONS.len() as u32
}

/// Changes whenever a function does.
fn functions_digest() -> String {
    let digest = digest_of_parts(b"pgonce functions", FUNCTIONS.iter().map(|(_, sql)| sql));
    digest[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn template(from: u32) -> String {
    let mut sql = format!("-- pgonce: schema :\"schema\" from version {from} to {}\n", latest());
    sql.push_str(PREAMBLE);
    for (version, (name, text)) in (1..).zip(MIGRATIONS).skip(from as usize) {
        // The row goes first: a process that was slower fails on it and applies nothing.
        sql.push_str(&format!(
            "\n-- {name}\ninsert into :\"schema\".migrations (version, name) values ({version}, '{name}');\n"
        ));
        sql.push_str(text);
    }
    for (name, text) in FUNCTIONS {
        sql.push_str(&format!("\n-- {name}\n{text}"));
    }
    sql.push_str(&format!(
        "\ninsert into :\"schema\".migrations (version, name, digest) values (0, 'functions', '{}')
on conflict (version) do update set digest = excluded.digest, applied_at = excluded.applied_at;\n",
        functions_digest()
    ));
    sql.push_str(RESTORE);
    sql
}
