//! A pooled connection with an open transaction of pgonce.

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{Database, PgConnection, PgPool, Postgres, Row, SqlSafeStr, Transaction};
use sqlx_core::transaction::TransactionManager;

use crate::error::{Error, ErrorKind, Result, commit as commit_error, database, sqlstate_in};
use crate::leased::loans::{Loan, Loans};
use crate::operation::response::Response;
use crate::protocol::claim::Claim;
use crate::protocol::procedure::{Unfit, answered};

type Manager = <Postgres as Database>::TransactionManager;

/// DEFERRABLE only marks the transaction as pgonce's: once the work has ended it, the mark is gone. This BEGIN fails
/// (25001) on a connection with a forgotten transaction that has run something.
const BEGIN: &str = "begin deferrable";
const BEGIN_READ_COMMITTED: &str = "begin isolation level read committed, deferrable";
const SAVEPOINT: &str = "savepoint pgonce_work";
const UNDO_WORK: &str = "rollback to savepoint pgonce_work";
const IS_OURS: &str =
    "select pg_catalog.current_setting('transaction_deferrable') operator(pg_catalog.=) 'on'";

/// Owns a pooled connection with an open transaction, and can be lent to a handler and taken back. If dropped before
/// commit or rollback, it closes the connection (sqlx's `Transaction` returns it to the pool), and the server rolls
/// back.
///
/// sqlx 0.9.0 knows of a transaction only when BEGIN is answered. A future dropped before that leaves it open on the
/// server, and the next borrower's writes would go into it and be lost. Only closing needs no further round trip.
pub(crate) struct OwnedTransaction {
    conn: PoolConnection<Postgres>,
    settled: bool,
    /// Whether the work can be undone without ending the transaction.
    savepoint: bool,
    /// Of leased work.
    loan: Option<Loan>,
    /// How long a statement of pgonce may take. None: as long as the server allows.
    answer_within: Option<Duration>,
}

impl OwnedTransaction {
    /// Begins on a pooled connection. A connection in a bad state refuses; it is closed, and another one is taken.
    pub(crate) async fn begin(pool: &PgPool) -> Result<Self> {
        Self::on_fit_connection(pool, BEGIN, None).await
    }

    /// As [`begin`](Self::begin), for leased work.
    pub(crate) async fn lend(pool: &PgPool, loans: &Loans) -> Result<Self> {
        let mut tx = Self::on_fit_connection(pool, BEGIN, Some(loans.answer_within())).await?;
        tx.loan = Some(loans.lend());
        Ok(tx)
    }

    /// Restarts the time of the loan.
    pub(crate) fn renew_loan(&self) {
        if let Some(loan) = &self.loan {
            loan.renew();
        }
    }

    /// Asks in a transaction that sees what others commit meanwhile, and rolls back. `query` makes the statement each
    /// time that it is sent.
    pub(crate) async fn look<'q>(
        pool: &PgPool,
        query: impl Fn() -> Query<'q, Postgres, PgArguments>,
    ) -> Result<Vec<PgRow>> {
        let mut unfit = Unfit::of(pool);
        loop {
            let mut tx = Self::on_fit_connection(pool, BEGIN_READ_COMMITTED, None).await?;
            let rows = query().fetch_all(&mut *tx).await.map_err(database);
            match tx.unless_failed(rows).await {
                Err(error) if unfit.takes_another(&error) => {}
                Err(error) => return Err(error),
                Ok((tx, rows)) => {
                    tx.rollback().await;
                    return Ok(rows);
                }
            }
        }
    }

    async fn on_fit_connection(
        pool: &PgPool,
        begin: &'static str,
        answer_within: Option<Duration>,
    ) -> Result<Self> {
        let mut unfit = Unfit::of(pool);
        loop {
            match Self::begin_with(pool, begin, answer_within).await {
                Err(error) if unfit.takes_another(&error) => {}
                begun => return begun,
            }
        }
    }

    async fn begin_with(
        pool: &PgPool,
        begin: &'static str,
        answer_within: Option<Duration>,
    ) -> Result<Self> {
        // Cancelling acquire is safe: nothing has been sent yet.
        let conn = pool.acquire().await.map_err(database)?;
        let mut tx = Self { conn, settled: false, savepoint: false, loan: None, answer_within };
        let begun = Manager::begin(&mut tx.conn, Some(begin.into_sql_str()));
        bounded(answer_within, begun).await.flatten().map_err(database)?;
        Ok(tx)
    }

    /// Sets the savepoint to which [`undo_work`](Self::undo_work) returns.
    pub(crate) async fn set_savepoint(&mut self) -> Result<()> {
        self.execute(SAVEPOINT).await?;
        self.savepoint = true;
        Ok(())
    }

    pub(crate) fn has_savepoint(&self) -> bool {
        self.savepoint
    }

    pub(crate) async fn undo_work(&mut self) -> Result<()> {
        self.check()?;
        self.execute(UNDO_WORK).await
    }

    /// Rolls back, and begins again, on the same connection if possible. Fails if the work has ended its transaction.
    pub(crate) async fn start_anew(mut self, pool: &PgPool) -> Result<Self> {
        let restarted = match Manager::get_transaction_depth(&self.conn) {
            0 => self.check(),
            1 => self.begin_again().await,
            _ => {
                drop(self); // a nested transaction is open: close, and the server rolls back
                return Self::begin(pool).await;
            }
        };
        let (tx, ()) = self.unless_failed(restarted).await?;
        Ok(tx)
    }

    async fn begin_again(&mut self) -> Result<()> {
        match self.check_mark().await {
            // An aborted transaction answers no question.
            Err(error) if error.kind() == ErrorKind::TransactionAborted => {}
            checked => checked?,
        }
        self.savepoint = false;
        let restarted = async {
            Manager::rollback(&mut self.conn).await?;
            Manager::begin(&mut self.conn, Some(BEGIN.into_sql_str())).await
        };
        bounded(self.answer_within, restarted).await.flatten().map_err(database)
    }

    /// Asks whether the transaction is still the one that began here. The driver knows only what the work did through
    /// it.
    pub(crate) async fn check_mark(&mut self) -> Result<()> {
        let asked = sqlx::raw_sql(IS_OURS).fetch_one(&mut *self.conn);
        let row = bounded(self.answer_within, asked).await.flatten().map_err(database)?;
        match row.try_get(0).map_err(database)? {
            true => Ok(()),
            false => Err(Error::new(
                ErrorKind::TransactionLost,
                "the work ended the transaction that was begun for it; what it wrote before may be committed without \
                 its key",
            )),
        }
    }

    /// Completes the claim and commits it with the work's writes.
    pub(crate) async fn complete(mut self, claim: Claim, response: Response) -> Result<()> {
        let completed = match self.check() {
            Ok(()) => bounded(self.answer_within, claim.complete(&mut self.conn, response))
                .await
                .map_err(database)
                .flatten(),
            Err(error) => Err(error),
        };
        self.commit_after(completed).await
    }

    /// Commits, or rolls back if the last statement failed.
    pub(crate) async fn commit_after(self, finished: Result<()>) -> Result<()> {
        let (tx, ()) = self.unless_failed(finished).await?;
        tx.commit().await
    }

    /// Commits a transaction whose last statement succeeded.
    pub(crate) async fn commit(mut self) -> Result<()> {
        self.check()?;
        match bounded(self.answer_within, Manager::commit(&mut self.conn)).await.flatten() {
            Ok(()) => {
                self.settled = true;
                Ok(())
            }
            Err(error) => {
                let error = commit_error(error);
                // The error arrives before the server has rolled back and freed its locks. Wait for the rollback, so
                // that a retry does not meet its own predecessor. The rollback also updates the driver's state.
                if error.kind() != ErrorKind::CommitUnknown {
                    self.rollback().await;
                }
                Err(error)
            }
        }
    }

    /// Commits a transaction in which an error may have been ignored; see [`commit`].
    pub(crate) async fn commit_probed(mut self) -> Result<()> {
        let probed = self.execute("select").await;
        self.commit_after(probed).await
    }

    /// Rolls back if the last statement failed.
    pub(crate) async fn unless_failed<T>(self, result: Result<T>) -> Result<(Self, T)> {
        match result {
            Ok(value) => Ok((self, value)),
            Err(error) => {
                self.rollback_after(sqlstate_in(&error)).await;
                Err(error)
            }
        }
    }

    /// Rolls back. If that fails, closes the connection.
    pub(crate) async fn rollback(mut self) {
        self.settled = self.is_rolled_back().await;
    }

    /// Rolls back after this error. Closes a connection that has lost its prepared statements, because the others would
    /// fail too.
    pub(crate) async fn rollback_after(mut self, sqlstate: Option<&str>) {
        self.settled = self.is_rolled_back().await && sqlstate != Some("26000");
    }

    /// Gives back a connection whose transaction has no lock: the pool sends the ROLLBACK.
    pub(crate) fn leave(mut self) {
        if Manager::get_transaction_depth(&self.conn) == 1 {
            Manager::start_rollback(&mut self.conn);
            self.settled = true;
        }
    }

    async fn is_rolled_back(&mut self) -> bool {
        Manager::get_transaction_depth(&self.conn) == 1
            && matches!(
                bounded(self.answer_within, Manager::rollback(&mut self.conn)).await,
                Ok(Ok(()))
            )
    }

    /// Checks in the driver that the transaction is the one that began here, with nothing else open in it. The work can
    /// end it, and a forgotten nested transaction would turn COMMIT into RELEASE.
    pub(crate) fn check(&self) -> Result<()> {
        let message = match Manager::get_transaction_depth(&self.conn) {
            1 => return Ok(()),
            0 => {
                "the work ended its own transaction (a nested begin that failed or was dropped does \
                 that in sqlx 0.9.0); what it wrote afterwards may be committed without its key"
            }
            _ => "the work left a nested transaction open; everything was rolled back",
        };
        Err(Error::new(ErrorKind::TransactionLost, message))
    }

    async fn execute(&mut self, statement: &'static str) -> Result<()> {
        let executed = sqlx::raw_sql(statement).execute(&mut *self.conn);
        bounded(self.answer_within, executed).await.flatten().map(drop).map_err(database)
    }
}

async fn bounded<F: Future>(within: Option<Duration>, future: F) -> sqlx::Result<F::Output> {
    match within {
        Some(within) => answered(within, future).await,
        None => Ok(future.await),
    }
}

impl Deref for OwnedTransaction {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.conn
    }
}

impl DerefMut for OwnedTransaction {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.conn
    }
}

impl Drop for OwnedTransaction {
    fn drop(&mut self) {
        if !self.settled {
            self.conn.close_on_drop();
        }
    }
}

/// Commits a transaction, and tells success, "rolled back" and "unknown" apart: after an ignored error COMMIT rolls
/// back, and sqlx 0.9.0 reports `Ok`. One round trip more than a bare COMMIT.
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
/// [`CommitUnknown`](crate::ErrorKind::CommitUnknown) if the connection broke before the answer; after any other kind,
/// nothing was committed.
///
/// # Cancel safety
/// If dropped, the outcome is unknown; if dropped during COMMIT, it is usually committed.
pub async fn commit(mut tx: Transaction<'_, Postgres>) -> Result<()> {
    // An ignored error has aborted the transaction: COMMIT would roll back and still report success. Any statement
    // before it fails instead (25P02).
    sqlx::raw_sql("select").execute(&mut *tx).await.map_err(database)?;
    tx.commit().await.map_err(commit_error)
}
