//! A pooled connection that never goes back to the pool with a transaction open.

use sqlx::pool::PoolConnection;
use sqlx::{Connection, PgPool, Postgres, Transaction};

use crate::error::{Error, ErrorKind, Result, commit as commit_error, database};

/// A connection borrowed from a pool for one transaction. Dropped before [`settled`] it is closed
/// instead of returned, and the server rolls back.
///
/// sqlx 0.9.0 marks a transaction as open only when the answer to BEGIN arrives. A future dropped
/// in between leaves it open on the server and unknown to the driver; the next borrower's writes
/// would then go into it and be lost. Closing is the one remedy that needs no further round trip.
///
/// [`settled`]: Checkout::settled
pub(crate) struct Checkout {
    conn: PoolConnection<Postgres>,
    settled: bool,
}

impl Checkout {
    pub(crate) async fn new(pool: &PgPool) -> Result<Self> {
        // Cancelling acquire is safe: nothing has been sent yet.
        let conn = pool.acquire().await.map_err(database)?;
        Ok(Self { conn, settled: false })
    }

    pub(crate) async fn begin(&mut self) -> Result<Transaction<'_, Postgres>> {
        self.conn.begin().await.map_err(database)
    }

    /// After a COMMIT that the server refused: waits until it has rolled back and let go of its
    /// locks, so that a retry does not meet its own predecessor. The driver reports the refusal
    /// before that.
    pub(crate) async fn rolled_back(mut self) {
        if self.conn.ping().await.is_ok() && !self.conn.is_in_transaction() {
            self.settled = true;
        }
    }

    /// Says that the transaction has ended.
    ///
    /// # Errors
    /// When the driver counts another one: the work leaked a nested transaction, COMMIT released only
    /// its savepoint, and closing the connection now rolls everything back.
    pub(crate) fn settled(mut self) -> Result<()> {
        if self.conn.is_in_transaction() {
            return Err(Error::new(
                ErrorKind::TransactionLost,
                "the work left a nested transaction open; everything was rolled back",
            ));
        }
        self.settled = true;
        Ok(())
    }
}

impl Drop for Checkout {
    fn drop(&mut self) {
        if !self.settled {
            self.conn.close_on_drop();
        }
    }
}

/// Commits a transaction, tells "rolled back" from "unknown", and takes neither for success: a COMMIT
/// after an overlooked error rolls back, and sqlx 0.9.0 reports that as `Ok`. One round trip more
/// than a bare COMMIT.
///
/// ```no_run
/// # async fn example(pool: sqlx::PgPool) -> Result<(), Box<dyn std::error::Error>> {
/// let tx = pool.begin().await?;
/// if let Err(error) = pgonce::commit(tx).await
///     && error.kind() == pgonce::ErrorKind::CommitUnknown
/// {
///     // Begin again with the same key: it is either replayed or runs clean.
/// }
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`CommitUnknown`](crate::ErrorKind::CommitUnknown) when the connection broke before the answer;
/// any other kind means that the server refused and rolled back.
///
/// # Cancel safety
/// Dropped before it returns, the outcome is unknown; it is usually committed.
pub async fn commit(mut tx: Transaction<'_, Postgres>) -> Result<()> {
    // An error that the caller overlooked has aborted the transaction: COMMIT would roll back and
    // still report success. Any statement before it fails instead (25P02).
    sqlx::raw_sql("select").execute(&mut *tx).await.map_err(database)?;
    commit_unbroken(tx).await
}

/// Commits a transaction whose last statement succeeded.
pub(crate) async fn commit_unbroken(tx: Transaction<'_, Postgres>) -> Result<()> {
    tx.commit().await.map_err(commit_error)
}
