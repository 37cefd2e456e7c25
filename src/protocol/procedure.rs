//! Calls of procedures, which commit by themselves.

use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{PgPool, Postgres};

use crate::error::{Error, ErrorKind, Result, database, sqlstate_in};

/// How often a call is sent when the database is away for a moment, the first included.
const TRIES_MAX: u32 = 4;

/// How long a call may take, beside the time that its caller lets it wait for others.
pub(crate) const ANSWER_MAX: Duration = Duration::from_secs(60);

/// Calls a procedure on a connection of the pool. `query` makes the statement, for each time that it is sent.
/// A call that is dropped, or gets no answer within that time, closes its connection.
///
/// A connection may come with a transaction that was left open on it (sqlx 0.9.0 does that when a `begin` is
/// dropped half way), or without the statements that the driver has prepared. The database then refuses the call and
/// has run nothing of it: such a connection is closed, and another one is taken.
pub(crate) async fn call<'q>(
    pool: &PgPool,
    within: Duration,
    query: impl Fn() -> Query<'q, Postgres, PgArguments>,
) -> Result<Option<PgRow>> {
    let mut unfit = Unfit::of(pool);
    loop {
        let mut conn = Asked { conn: pool.acquire().await.map_err(database)?, answered: false };
        let error = match answered(within, query().fetch_optional(&mut *conn.conn)).await {
            Ok(Ok(row)) => {
                conn.answered = true;
                return Ok(row);
            }
            Ok(Err(error)) => database(error),
            Err(silent) => return Err(database(silent)),
        };
        conn.answered = !is_unfit(&error);
        if !unfit.takes_another(&error) {
            return Err(error);
        }
    }
}

/// A connection that is closed unless it has answered. The pool would wait for the answer, without a bound.
struct Asked {
    conn: PoolConnection<Postgres>,
    answered: bool,
}

impl Drop for Asked {
    fn drop(&mut self) {
        if !self.answered {
            self.conn.close_on_drop();
        }
    }
}

/// The output of `future`, or an error when there is none within that time.
pub(crate) async fn answered<F: Future>(within: Duration, future: F) -> sqlx::Result<F::Output> {
    tokio::time::timeout(within, future).await.map_err(|_| {
        sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer in time"))
    })
}

/// As [`call`], for a procedure that answers.
pub(crate) async fn ask<'q>(
    pool: &PgPool,
    within: Duration,
    query: impl Fn() -> Query<'q, Postgres, PgArguments>,
) -> Result<PgRow> {
    let none = || Error::new(ErrorKind::SchemaTooNew, "a procedure gave no answer");
    call(pool, within, query).await?.ok_or_else(none)
}

/// As [`call`], and again when the database is away for a moment. Says whether it was sent more than once: an earlier
/// call may have got through, and only its answer not.
pub(crate) async fn call_patiently<'q>(
    pool: &PgPool,
    within: Duration,
    query: impl Fn() -> Query<'q, Postgres, PgArguments>,
) -> (Result<Option<PgRow>>, bool) {
    patiently(|| call(pool, within, &query)).await
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
    within: Duration,
    query: impl Fn() -> Query<'q, Postgres, PgArguments>,
) -> Result<PgRow> {
    let mut tries = 1;
    loop {
        match ask(pool, within, &query).await {
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

/// Whether the database has refused a call, a BEGIN or a look because of what the connection was left with: a
/// transaction that was used (2D000 for a call, 25001 for BEGIN), an aborted one (25P02), no prepared statement (26000).
pub(crate) fn is_unfit(error: &Error) -> bool {
    matches!(sqlstate_in(error), Some("2D000" | "25001" | "25P02" | "26000"))
}

/// How many unfit connections one call may still meet: as many as the pool has, and one more.
pub(crate) struct Unfit {
    left: u32,
}

impl Unfit {
    pub(crate) fn of(pool: &PgPool) -> Self {
        Self { left: pool.options().get_max_connections().saturating_add(1) }
    }

    /// Whether to take another connection after this error. The caller closes the one that gave it.
    pub(crate) fn takes_another(&mut self, error: &Error) -> bool {
        if !is_unfit(error) || self.left == 0 {
            return false;
        }
        self.left -= 1;
        tracing::warn!(
            sqlstate = sqlstate_in(error),
            "a pooled connection had a transaction left open, or had lost its prepared statements; it is closed"
        );
        true
    }
}
