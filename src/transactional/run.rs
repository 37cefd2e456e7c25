//! The closure form: its steps cannot be forgotten. For a key without a row it sends
//!
//! 1. `begin deferrable`, by itself. DEFERRABLE marks the transaction as ours: step 4 refuses if the work has ended it;
//! 2. the look (`sql/statements/look.sql`), which tries the key's advisory lock where it sees no row. A finished row is
//!    replayed. If another transaction has the lock, the call rolls back and is *in progress*, or waits if its caller
//!    allows that, and begins again. (At SERIALIZABLE a savepoint follows, for a failure that is kept.);
//! 3. the work. If it fails, everything is rolled back, and the call looks once more, in a new transaction and without
//!    the lock, before it believes the error: the work may have failed because it is a duplicate;
//! 4. the INSERT of the finished row (`sql/statements/insert_finished.sql`). It tries the lock again. If another call
//!    has written a row since the look, no row comes back. If another transaction has the lock, it fails (`IK004`). In
//!    both cases everything is rolled back, and the call begins again;
//! 5. `COMMIT`, by itself.
//!
//! An [optimistic](Operation::optimistic) call leaves out step 2 at its first start: for a finished key its work runs
//! and is rolled back in step 4, and the next start looks. Only such a call meets `IK004`.
//!
//! A row that may be overwritten (its claim has lapsed, or its retention is over) goes to `begin_operation` after the
//! look, and to `complete` or `fail` in place of the INSERT. A failure that is kept takes steps 1, 2, 4 and 5 anew,
//! without the work; at SERIALIZABLE it goes back to the savepoint instead. Contention starts a call again, up to 20
//! starts in all (`restarts.rs`). `call.rs` has the steps.

use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::{PgConnection, PgPool};

use super::call::Call;
use super::outcome::{Done, Ending, answered};
use super::performing::{Begun, Ended};
use super::run_error::RunError;
use super::work_error::WorkError;
use crate::client::PgOnce;
use crate::operation::Operation;
use crate::operation::response::Response;
use crate::protocol::answer::Finished;

impl PgOnce {
    /// Runs `work` once per key, in one transaction with the key and its response.
    ///
    /// Takes a connection, opens a transaction, begins, runs `work` on it, completes with the
    /// returned value as JSON, commits. A retry of a finished key gets the stored value and does not
    /// run `work`. The first caller gets the value as it is read back from that JSON, too: a value that cannot be read
    /// back (a NaN, a field that is not written) is refused, and everything is rolled back. Serialization failures and deadlocks (40001, 40P01) run the whole transaction
    /// again, so `work` may be called several times; only one call's writes are ever committed.
    /// [Compile errors](crate::_docs::compile_errors) has those that a closure leads to.
    ///
    /// When `work` fails, everything is rolled back and nothing is remembered, unless it returns
    /// [`Failure::keep`](crate::Failure::keep): then its writes are undone, and the failure is stored and replayed. Should another call have
    /// finished the key meanwhile, its response is the answer in both cases.
    ///
    /// Inside `work`, nested transactions (`tx.begin()`) are savepoints. Let each of them end, and do not
    /// drop a `begin` half way: sqlx 0.9.0 then rolls back the whole transaction behind the work's back.
    /// `run` notices and answers [`TransactionLost`](crate::ErrorKind::TransactionLost). Never send `COMMIT` or
    /// `ROLLBACK` yourself: what was written before is committed without its key, and the next call does it again.
    /// `run` answers `TransactionLost` then, too.
    ///
    /// The connection is in use while `work` runs, and while this waits for an open transaction elsewhere. Of the calls
    /// that [wait](crate::Policy::wait) for one key, on one pool and through clones of one `PgOnce`, at most one holds a
    /// connection. Do not call other services from `work`: an open
    /// transaction blocks vacuum. That is what leased claims are for.
    ///
    /// ```no_run
    /// # use pgonce::{Operation, PgOnce};
    /// # async fn example(pool: sqlx::PgPool, once: PgOnce) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    /// let op = Operation::new("acme/payments.create", "order-17")?;
    /// let payment = once
    ///     .run(&pool, &op, async |tx| {
    ///         sqlx::query_scalar::<_, i64>("insert into payment (amount) values (100) returning id")
    ///             .fetch_one(tx)
    ///             .await
    ///     })
    ///     .await?;
    /// println!("payment {} ({})", *payment, if payment.is_replay() { "replayed" } else { "new" });
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`RunError`]. After [`CommitUnknown`](crate::ErrorKind::CommitUnknown), call it again with the same
    /// key to find out.
    ///
    /// # Cancel safety
    /// Cancel safe. Dropped at any point, the transaction is rolled back by closing its connection,
    /// never left open in the pool; dropped during COMMIT, it may have been committed. Calling it
    /// again with the same key is right in both cases.
    pub async fn run<T, E, Kind, F>(
        &self,
        pool: &PgPool,
        op: &Operation,
        work: F,
    ) -> Result<Done<T>, RunError<E>>
    where
        T: Serialize + DeserializeOwned,
        E: WorkError<Kind>,
        F: AsyncFnOnce(&mut PgConnection) -> Result<T, E> + Clone,
    {
        let waiting = self.lines.wait(pool, self.policy_of(op).wait);
        let mut call = Call::new(self, pool, op, waiting);
        loop {
            let mut tx = match call.begin().await? {
                Begun::Started(tx) => tx,
                Begun::Answered(answer) => return answered(answer),
            };
            let (outcome, ended) = match work.clone()(&mut tx).await.map_err(E::into_ending) {
                Ok(value) => {
                    let (value, response) = match Response::of_value(value, op.secret) {
                        Ok(stored) => stored,
                        Err(error) => {
                            tx.tx.rollback().await;
                            return Err(error.into());
                        }
                    };
                    let ended = call.finish(tx, Finished::Completed, response).await;
                    (Ok(Done::new(value)), ended)
                }
                Err(Ending::Keep(response)) => {
                    let ended = call.keep(tx, response.clone()).await;
                    (Err(RunError::Failed { response, replayed: false }), ended)
                }
                Err(Ending::Undo(error)) => match call.undo(tx).await {
                    // Not retryable, whatever the error: what the work wrote may be committed.
                    Err(lost) => return Err(lost.after(&error.redacted()).into()),
                    Ok(Some(answer)) => return answered(answer),
                    Ok(None) if error.is_contention() && call.lost_to_another().await => continue,
                    Ok(None) => return Err(error),
                },
            };
            match ended {
                Ok(Ended::Committed) => return outcome,
                Ok(Ended::Answered(answer)) => return answered(answer),
                Ok(Ended::Lost) => {} // to another call: begin again
                Err(error) if call.starts_again(&error).await => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
