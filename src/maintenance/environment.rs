//! What pgonce needs from the database, the session's settings, and a pooler in front of the server.

use std::pin::pin;
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::{PgConnection, PgPool, Postgres, Row};
use tokio::sync::Mutex;

use crate::error::{ErrorKind, Result, database, sqlstate_in};

/// Settings under which `begin deferrable` does not do what pgonce needs, and the encoding.
const SETTINGS: &str = "
    select pg_catalog.current_setting('default_transaction_deferrable') operator(pg_catalog.=) 'on' as deferrable,
           pg_catalog.current_setting('default_transaction_isolation') operator(pg_catalog.=) 'serializable'
             and pg_catalog.current_setting('default_transaction_read_only') operator(pg_catalog.=) 'on' as slow,
           pg_catalog.getdatabaseencoding() operator(pg_catalog.=) 'SQL_ASCII' as ascii";
const DEFERRABLE: &str = "default_transaction_deferrable is on, and pgonce marks its transactions with that property: \
                          set it to off for this role or database";
const SLOW: &str = "default_transaction_isolation is serializable and default_transaction_read_only is on, with which \
                    pgonce's transactions may wait for long before they begin, and cannot write: set the second to off";
const ASCII: &str = "the encoding of this database is SQL_ASCII, which does not tell characters; pgonce needs another one";
const SWAPPED: &str = "prepared statements cannot be trusted behind this pooler: use PgBouncer 1.21 or later with \
                       max_prepared_statements, or session mode";

/// With values that fit no statement of an application: if a pooler runs one instead, it fails before it does anything.
const STATEMENTS: [&str; 2] = [
    "select 1, $1::pg_catalog.int2, $2::pg_catalog.float4, $3::pg_catalog.bool",
    "select 2, $1::pg_catalog.int2, $2::pg_catalog.float4, $3::pg_catalog.bool",
];
/// How often to ask. Between two questions, a busy pooler lends the server's session to others.
const ROUNDS: usize = 4;
const QUESTIONS: usize = 2;
/// How long a pooler may take to find a second session. A pooler without one waits for the first.
const SECOND_SESSION_WITHIN: Duration = Duration::from_secs(1);

/// Each check takes two connections: several checks on one small pool would wait for each other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// Every problem of an environment that breaks pgonce's promises.
pub(crate) async fn problems(pool: &PgPool) -> Result<Vec<String>> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let mut conn = pool.acquire().await.map_err(database)?;
    let mut problems = settings(&mut conn).await?;
    if pool.options().get_max_connections() > 1 {
        let other = pool.acquire().await.map_err(database)?;
        if swaps(&mut conn, Holder { conn: other, is_open: false }).await? {
            problems.push(SWAPPED.to_owned());
        }
    }
    Ok(problems)
}

async fn settings(conn: &mut PgConnection) -> Result<Vec<String>> {
    // In the simple protocol: nothing is known of the pooler yet.
    let row = sqlx::raw_sql(SETTINGS).fetch_one(conn).await.map_err(database)?;
    let mut problems = Vec::new();
    for (column, problem) in [("deferrable", DEFERRABLE), ("slow", SLOW), ("ascii", ASCII)] {
        if row.try_get(column).map_err(database)? {
            problems.push(problem.to_owned());
        }
    }
    Ok(problems)
}

/// Whether a pooler runs one client's prepared statement for another, or loses it. The driver numbers its statements,
/// so two connections give one name to different statements. While `other` has a transaction open, such a pooler lends
/// only `other` the server session in which `conn` prepared its statement. Or `other` has another session: then `conn`
/// gets that session after the transaction, because poolers take the session that was used last.
async fn swaps(conn: &mut PgConnection, mut other: Holder) -> Result<bool> {
    for _ in 0..ROUNDS {
        if is_swapped(conn, 0).await? {
            return Ok(true);
        }
        other.send("begin").await?;
        if is_swapped(&mut other.conn, 1).await? {
            return Ok(true);
        }
        for _ in 0..QUESTIONS {
            let mut asked = pin!(is_swapped(conn, 0));
            let answer = match tokio::time::timeout(SECOND_SESSION_WITHIN, &mut asked).await {
                Ok(answer) => answer,
                Err(_) => {
                    other.send("rollback").await?;
                    asked.await
                }
            };
            if answer? {
                return Ok(true);
            }
        }
        other.send("rollback").await?;
        other.is_open = false;
    }
    is_swapped(conn, 0).await
}

/// Whether another statement answers in place of this one.
async fn is_swapped(conn: &mut PgConnection, statement: usize) -> Result<bool> {
    let query = sqlx::query(STATEMENTS[statement]).bind(-1_i16).bind(0_f32).bind(true);
    match query.fetch_one(conn).await {
        Ok(row) => Ok(row.try_get::<i32, _>(0).ok() != Some([1, 2][statement])),
        Err(sqlx::Error::RowNotFound) => Ok(true),
        Err(error) => match database(error) {
            // The statement is gone, exists already, or has other parameters or types.
            error
                if matches!(
                    sqlstate_in(&error),
                    Some("26000" | "42P05" | "08P01" | "22P03" | "22021")
                ) && error.kind() != ErrorKind::Connection =>
            {
                Ok(true)
            }
            error => Err(error),
        },
    }
}

/// Occupies a server session by a transaction. A drop while `is_open` closes the connection, and does not return it to
/// the pool.
struct Holder {
    conn: PoolConnection<Postgres>,
    is_open: bool,
}

impl Holder {
    async fn send(&mut self, statement: &'static str) -> Result<()> {
        self.is_open = true;
        sqlx::raw_sql(statement).execute(&mut *self.conn).await.map(drop).map_err(database)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        if self.is_open {
            self.conn.close_on_drop();
        }
    }
}
