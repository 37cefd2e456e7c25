//! A pooled connection with a transaction of ours open on it.

mod flight;
mod opening;

use std::error::Error as StdError;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{Database, PgConnection, PgPool, Postgres, SqlSafeStr, Transaction};
use sqlx_core::transaction::TransactionManager;

use crate::answer::Finished;
use crate::claim::Claim;
use crate::error::{Error, ErrorKind, Result, commit as commit_error, database, sqlstate_in};
use crate::literal;
use crate::loans::{Loan, Loans};
use crate::protocol::procedure::{Unfit, answered};
use crate::response::Response;

use flight::Flight;
pub(crate) use flight::Flights;
pub(crate) use opening::Asked;

type Manager = <Postgres as Database>::TransactionManager;

/// DEFERRABLE means nothing here, but fails on a connection whose transaction has run something already (25001).
const BEGIN: &str = "begin deferrable";
const BEGIN_LOOK: &str = "begin isolation level read committed, deferrable";
const SAVEPOINT: &str = "savepoint pgonce_work";
const UNDO_WORK: &str = "rollback to savepoint pgonce_work";
/// The next transaction, an empty one, is for the driver's books: it takes a COMMIT only as a statement of its
/// own, and its ROLLBACK costs nobody a round trip.
const COMMIT: &str = "commit and chain";

/// A connection borrowed from a pool with a transaction open on it, which it owns: it can be handed
/// to somebody and taken back, as sqlx's own `Transaction` cannot without giving up what follows.
/// Dropped before it was committed or rolled back, the connection is closed instead of returned, and
/// the server rolls back.
///
/// sqlx 0.9.0 marks a transaction as open only when the answer to BEGIN arrives. A future dropped
/// in between leaves it open on the server and unknown to the driver; the next borrower's writes
/// would then go into it and be lost. Closing is the one remedy that needs no further round trip.
pub(crate) struct Checkout {
    conn: PoolConnection<Postgres>,
    settled: bool,
    /// Others of this process wait until this is over.
    flight: Option<Flight>,
    /// Of leased work.
    loan: Option<Loan>,
    /// How long a statement of ours may take. None: as long as the server lets it.
    answer_within: Option<Duration>,
}

impl Checkout {
    /// Borrows the connection, without a transaction.
    async fn borrow(pool: &PgPool) -> Result<Self> {
        // Cancelling acquire is safe: nothing has been sent yet.
        let conn = pool.acquire().await.map_err(database)?;
        Ok(Self { conn, settled: false, flight: None, loan: None, answer_within: None })
    }

    /// Opens a transaction on a connection of the pool. One that comes with a transaction that somebody has left open
    /// on it, and has used or aborted, is closed, and another one is taken.
    #[cfg(feature = "tower")]
    pub(crate) async fn begin(pool: &PgPool) -> Result<Self> {
        Self::begin_with(pool, BEGIN, None).await
    }

    /// As [`begin`](Checkout::begin), for leased work.
    pub(crate) async fn lend(pool: &PgPool, loans: &Loans) -> Result<Self> {
        let mut checkout = Self::begin_with(pool, BEGIN, Some(loans.answer_within())).await?;
        checkout.loan = Some(loans.lend());
        Ok(checkout)
    }

    /// The work has asked for it again.
    pub(crate) fn renew_loan(&self) {
        if let Some(loan) = &self.loan {
            loan.renew();
        }
    }

    /// Asks in a transaction that sees what others commit meanwhile, and rolls it back. `query` makes the statement,
    /// for each time that it is sent: a connection that has lost its prepared statements is closed, and another one is
    /// asked.
    pub(crate) async fn look<'q>(
        pool: &PgPool,
        query: impl Fn() -> Query<'q, Postgres, PgArguments>,
    ) -> Result<Vec<PgRow>> {
        let mut unfit = Unfit::of(pool);
        loop {
            let mut checkout = Self::begin_with(pool, BEGIN_LOOK, None).await?;
            match query().fetch_all(&mut *checkout).await.map_err(database) {
                Err(error) => {
                    let again = unfit.takes_another(&error);
                    checkout.rollback_after(&error).await;
                    if !again {
                        return Err(error);
                    }
                }
                told => {
                    checkout.rollback().await;
                    return told;
                }
            }
        }
    }

    async fn begin_with(
        pool: &PgPool,
        begin: &'static str,
        answer_within: Option<Duration>,
    ) -> Result<Self> {
        let mut unfit = Unfit::of(pool);
        loop {
            let mut checkout = Self::borrow(pool).await?;
            checkout.answer_within = answer_within;
            match checkout.open_transaction(begin).await {
                Ok(()) => return Ok(checkout),
                Err(error) if unfit.takes_another(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }

    async fn open_transaction(&mut self, begin: &'static str) -> Result<()> {
        bounded(self.answer_within, Manager::begin(&mut self.conn, Some(begin.into_sql_str())))
            .await
            .flatten()
            .map_err(database)
    }

    /// Completes the claim and commits it with what the work wrote.
    pub(crate) async fn complete(mut self, claim: Claim, response: Response) -> Result<()> {
        if let Some(ending) = claim.ending(Finished::Completed, &response) {
            return self.end(&[&ending, COMMIT]).await;
        }
        let completed = match self.check() {
            Ok(()) => bounded(self.answer_within, claim.complete(&mut self.conn, response))
                .await
                .map_err(database)
                .flatten(),
            Err(error) => Err(error),
        };
        self.commit_after(completed).await
    }

    /// Ends the transaction with one message.
    async fn end(mut self, statements: &[&str]) -> Result<()> {
        if let Err(error) = self.check() {
            self.rollback().await;
            return Err(error);
        }
        let message = literal::message(statements);
        let ended = sqlx::raw_sql(message).execute(&mut *self.conn);
        match bounded(self.answer_within, ended).await.flatten() {
            Ok(_) => {
                self.leave();
                Ok(())
            }
            Err(error) => Err(self.refused(error).await),
        }
    }

    /// Gives the connection back; the rollback is sent with what the pool sends.
    fn leave(mut self) {
        Manager::start_rollback(&mut self.conn);
        self.settled = true;
    }

    /// Commits the work, and the claim completed if that can be.
    #[cfg(feature = "tower")]
    pub(crate) async fn complete_or_commit(
        mut self,
        claim: Claim,
        response: Response,
    ) -> Result<()> {
        let completed = async {
            self.check()?;
            self.execute("savepoint pgonce_complete").await?;
            if let Err(error) = claim.complete(&mut self.conn, response).await {
                tracing::warn!(%error, "an observed claim was not completed");
                self.execute("rollback to savepoint pgonce_complete").await?;
            }
            Ok(())
        };
        let completed = completed.await;
        self.commit_after(completed).await
    }

    /// Undoes the work, fails the claim and commits that.
    pub(crate) async fn fail(mut self, claim: Claim, response: Response) -> Result<()> {
        if let Some(ending) = claim.ending(Finished::Failed, &response) {
            return self.end(&[UNDO_WORK, &ending, COMMIT]).await;
        }
        let failed = match self.undo_work().await {
            Ok(()) => claim.fail(&mut self.conn, response).await,
            Err(error) => Err(error),
        };
        self.commit_after(failed).await
    }

    async fn undo_work(&mut self) -> Result<()> {
        self.check()?;
        self.execute(UNDO_WORK).await
    }

    /// Commits, or rolls back when the last statement failed.
    pub(crate) async fn commit_after(self, finished: Result<()>) -> Result<()> {
        match finished {
            Ok(()) => self.commit().await,
            Err(error) => {
                self.rollback_after(&error).await;
                Err(error)
            }
        }
    }

    /// Commits a transaction whose last statement succeeded.
    pub(crate) async fn commit(mut self) -> Result<()> {
        self.check()?;
        match bounded(self.answer_within, Manager::commit(&mut self.conn)).await.flatten() {
            Ok(()) => {
                self.settled = true;
                Ok(())
            }
            Err(error) => Err(self.refused(error).await),
        }
    }

    async fn refused(self, error: sqlx::Error) -> Error {
        let error = commit_error(error);
        // Reported before the server has rolled back and let go of its locks. A retry should
        // not meet its own predecessor, so wait; it also tells the driver's books.
        if error.kind() != ErrorKind::CommitUnknown {
            self.rollback().await;
        }
        error
    }

    /// Commits a transaction in which an error may have been overlooked; see [`commit`].
    #[cfg(feature = "tower")]
    pub(crate) async fn commit_probed(mut self) -> Result<()> {
        let probed = self.execute("select").await;
        self.commit_after(probed).await
    }

    /// Undoes work that has failed. An error: it has ended its own transaction, and what it wrote may be committed.
    pub(crate) async fn undo(mut self) -> Result<()> {
        let undone = match Manager::get_transaction_depth(&self.conn) {
            0 => self.check(),
            1 => self.execute("rollback to savepoint pgonce_work; rollback and chain").await,
            _ => {
                self.rollback().await; // and with it what was left open
                return Ok(());
            }
        };
        match undone {
            Ok(()) => self.leave(),
            // The savepoint tells whether this is still the transaction that was begun here.
            Err(error) if error.kind() == ErrorKind::TransactionLost => return Err(error),
            Err(_) => {} // the connection is closed, and the server rolls back
        }
        Ok(())
    }

    /// Rolls back. A connection on which that fails is closed.
    pub(crate) async fn rollback(mut self) {
        self.settled = self.is_rolled_back().await;
    }

    /// Rolls back after this error. A connection that has lost its prepared statements is closed: whatever was
    /// prepared on it would fail in the same way.
    pub(crate) async fn rollback_after(mut self, error: &(dyn StdError + Send + Sync + 'static)) {
        self.settled = self.is_rolled_back().await && sqlstate_in(error) != Some("26000");
    }

    async fn is_rolled_back(&mut self) -> bool {
        Manager::get_transaction_depth(&self.conn) == 1
            && matches!(
                bounded(self.answer_within, Manager::rollback(&mut self.conn)).await,
                Ok(Ok(()))
            )
    }

    /// Whether the transaction is the one that was begun here, and nothing else is open in it. Work
    /// can end it, and a nested transaction that it forgot would turn COMMIT into RELEASE.
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

impl Deref for Checkout {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.conn
    }
}

impl DerefMut for Checkout {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.conn
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
    tx.commit().await.map_err(commit_error)
}
