//! Calls of procedures, which commit by themselves.

use std::time::Duration;

use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{PgPool, Postgres};

use crate::error::{Error, ErrorKind, Result, database};

/// How often a call is sent when the database is away for a moment, the first included.
const TRIES_MAX: u32 = 4;

/// Calls a procedure on a connection of the pool. `query` makes the statement, for each time that it is sent.
///
/// A connection may come with a transaction that somebody has left open on it (sqlx 0.9.0 does that when a `begin` is
/// dropped half way), or without the statements that the driver has prepared. The database then refuses the call and
/// has run nothing of it: such a connection is closed, and another one is taken.
pub(crate) async fn call<'q>(
    pool: &PgPool,
    query: impl Fn() -> Query<'q, Postgres, PgArguments>,
) -> Result<Option<PgRow>> {
    let mut unfit = 0;
    loop {
        let mut conn = pool.acquire().await.map_err(database)?;
        let error = match query().fetch_optional(&mut *conn).await {
            Ok(row) => return Ok(row),
            Err(error) => error,
        };
        if !is_unfit(&error) || unfit > pool.options().get_max_connections() {
            return Err(database(error));
        }
        unfit += 1;
        tracing::warn!(
            sqlstate = error.as_database_error().and_then(|error| error.code()).as_deref(),
            "a pooled connection had a transaction left open, or had lost its prepared statements; it is closed"
        );
        conn.close_on_drop();
    }
}

/// As [`call`], for a procedure that answers.
pub(crate) async fn ask<'q>(
    pool: &PgPool,
    query: impl Fn() -> Query<'q, Postgres, PgArguments>,
) -> Result<PgRow> {
    let none = || Error::new(ErrorKind::SchemaTooNew, "a procedure gave no answer");
    call(pool, query).await?.ok_or_else(none)
}

/// As [`call`], and again when the database is away for a moment. Says whether it was sent more than once: an earlier
/// call may have got through, and only its answer not.
pub(crate) async fn call_patiently<'q>(
    pool: &PgPool,
    query: impl Fn() -> Query<'q, Postgres, PgArguments>,
) -> (Result<Option<PgRow>>, bool) {
    patiently(|| call(pool, &query)).await
}

/// Does something again when the database is away for a moment. Says whether it was done more than once.
pub(crate) async fn patiently<T, F: Future<Output = Result<T>>>(
    attempt: impl Fn() -> F,
) -> (Result<T>, bool) {
    let mut tries = 1;
    loop {
        match attempt().await {
            Err(error) if error.is_retryable() && tries < TRIES_MAX => {
                tokio::time::sleep(pause(tries)).await;
                tries += 1;
            }
            result => return (result, tries > 1),
        }
    }
}

/// As [`ask`], and again when the answer was lost, for procedures that may be called again with the same arguments.
pub(crate) async fn ask_again<'q>(
    pool: &PgPool,
    query: impl Fn() -> Query<'q, Postgres, PgArguments>,
) -> Result<PgRow> {
    let mut tries = 1;
    loop {
        match ask(pool, &query).await {
            Err(error) if error.lost_answer() && tries < TRIES_MAX => {
                tokio::time::sleep(pause(tries)).await;
                tries += 1;
            }
            result => return result,
        }
    }
}

/// Sends a text that is for people. What the database cannot keep of it, NUL or what its encoding does not have, is
/// replaced by question marks: the call matters more than the text.
pub(crate) async fn keeping<T, F: Future<Output = Result<T>>>(
    text: Option<&str>,
    send: impl Fn(Option<String>) -> F,
) -> Result<T> {
    let text = text.map(|text| text.replace('\0', "?"));
    match send(text.clone()).await {
        Err(error) if error.is_untranslatable() => {
            send(text.map(|text| text.replace(|char: char| !char.is_ascii(), "?"))).await
        }
        sent => sent,
    }
}

/// The pause after so many tries.
fn pause(tries: u32) -> Duration {
    Duration::from_millis(50 << tries)
}

/// Whether the database has refused a call or a BEGIN because of what the connection was left with: a transaction
/// that was used (2D000 for a call, 25001 for BEGIN), an aborted one (25P02), no prepared statement (26000).
pub(crate) fn is_unfit(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    matches!(code.as_deref(), Some("2D000" | "25001" | "25P02" | "26000"))
}
