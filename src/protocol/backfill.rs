//! Work that was done before pgonce.

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use sqlx::{PgConnection, Postgres, SqlStr};
use time::OffsetDateTime;

use crate::client::{PgOnce, get};
use crate::error::{Result, database};
use crate::operation::key::{Key, Scope};
use crate::operation::millis;
use crate::operation::response::Response;

/// Something that was done before pgonce; see [`PgOnce::backfill`]. `Debug` does not show scope and key.
#[derive(Clone)]
pub struct PastOperation {
    /// Its scope.
    pub scope: Scope,
    /// Its key: what the client sends, or will send, with a retry.
    pub key: Key,
    /// When it was done: the retention counts from here.
    pub completed_at: OffsetDateTime,
    /// Whether it has failed for good.
    pub failed: bool,
    /// The request's fingerprint as bytes ([`Fingerprint::as_bytes`](crate::Fingerprint::as_bytes), or the SQL function
    /// `fingerprint`). `None`: any request with this key is taken for the same.
    pub fingerprint: Option<Vec<u8>>,
    /// What a retry gets. For [`run`](PgOnce::run), the value as JSON.
    pub response: Response,
}

/// What [`PgOnce::backfill`] did, or would do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Backfilled {
    /// Keys that were marked as done.
    pub inserted: u64,
    /// Keys that were known before, and stay as they were.
    pub known: u64,
    /// Operations that were done too long ago to be remembered.
    pub expired: u64,
}

/// What [`PgOnce::undo_backfill`] did, or would do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct BackfillUndone {
    /// Keys that were deleted.
    pub deleted: u64,
    /// Keys that something else has written or touched, and stay.
    pub kept: u64,
}

// By hand: a derived one would show what was stored.
impl fmt::Debug for PastOperation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PastOperation")
            .field("completed_at", &self.completed_at)
            .field("failed", &self.failed)
            .finish_non_exhaustive()
    }
}

impl PgOnce {
    /// Marks operations as done that were done before, with their responses: a retry gets them, and no work runs. The
    /// retention counts from when they were done. Up to 10,000 in a call. With `dry_run`, only counts.
    ///
    /// Inserts finished rows in the order of their keys; a key that is known stays as it is, so the call can be repeated.
    /// A response over 1 MiB is omitted. To be called in a transaction.
    ///
    /// ```no_run
    /// # use pgonce::{Key, PastOperation, PgOnce, Response, Scope};
    /// # async fn example(pool: sqlx::PgPool, once: PgOnce) -> Result<(), Box<dyn std::error::Error>> {
    /// let payment = PastOperation {
    ///     scope: Scope::of(["acme", "payments.create"]),
    ///     key: Key::new("order-17")?,
    ///     completed_at: time::OffsetDateTime::now_utc() - time::Duration::HOUR,
    ///     failed: false,
    ///     fingerprint: None,
    ///     response: Response::json(&4711)?,
    /// };
    /// let retention = std::time::Duration::from_secs(30 * 86_400);
    /// let mut tx = pool.begin().await?;
    /// once.backfill(&mut tx, &[payment], retention, false).await?;
    /// pgonce::commit(tx).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput), with the row's number, for an operation that was done in the
    /// future, a fingerprint of another length, or too many; then nothing is written. Other errors of the database.
    ///
    /// # Cancel safety
    /// Dropped half way, the rows may or may not be in the transaction: roll it back.
    pub async fn backfill(
        &self,
        conn: &mut PgConnection,
        operations: &[PastOperation],
        retention: Duration,
        dry_run: bool,
    ) -> Result<Backfilled> {
        let query = bound(&self.statements.backfill, operations, retention, dry_run);
        let row = query.fetch_one(conn).await.map_err(database)?;
        let count = |column| get::<i64>(&row, column).map(i64::unsigned_abs);
        Ok(Backfilled {
            inserted: count("inserted")?,
            known: count("known")?,
            expired: count("expired")?,
        })
    }

    /// Undoes a [`backfill`](PgOnce::backfill) of the same operations: deletes the keys that are exactly as it wrote them.
    /// Keys that something else has written or touched stay. With `dry_run`, only counts. To be called in a transaction,
    /// by a role that may delete keys.
    ///
    /// # Errors
    /// As [`backfill`](PgOnce::backfill).
    ///
    /// # Cancel safety
    /// Dropped half way, the rows may or may not be deleted in the transaction: roll it back.
    pub async fn undo_backfill(
        &self,
        conn: &mut PgConnection,
        operations: &[PastOperation],
        retention: Duration,
        dry_run: bool,
    ) -> Result<BackfillUndone> {
        let query = bound(&self.statements.undo_backfill, operations, retention, dry_run);
        let row = query.fetch_one(conn).await.map_err(database)?;
        let count = |column| get::<i64>(&row, column).map(i64::unsigned_abs);
        Ok(BackfillUndone { deleted: count("deleted")?, kept: count("kept")? })
    }
}

fn bound<'q>(
    statement: &SqlStr,
    operations: &[PastOperation],
    retention: Duration,
    dry_run: bool,
) -> Query<'q, Postgres, PgArguments> {
    fn each<T>(operations: &[PastOperation], of: impl Fn(&PastOperation) -> T) -> Vec<T> {
        operations.iter().map(of).collect()
    }
    let bytes = |bytes: &[u8]| (!bytes.is_empty()).then(|| bytes.to_vec());
    // Microseconds since 1970, as the database counts them.
    let micros =
        |at: OffsetDateTime| i64::try_from(at.unix_timestamp_nanos() / 1000).unwrap_or(i64::MAX);
    sqlx::query(statement.clone())
        .bind(each(operations, |one| one.scope.as_str().to_owned()))
        .bind(each(operations, |one| one.key.as_str().to_owned()))
        .bind(each(operations, |one| micros(one.completed_at)))
        .bind(millis(retention))
        .bind(each(operations, |one| one.failed))
        .bind(each(operations, |one| one.fingerprint.clone()))
        .bind(each(operations, |one| one.response.code()))
        .bind(each(operations, |one| bytes(one.response.headers())))
        .bind(each(operations, |one| bytes(one.response.body())))
        .bind(dry_run)
}
