//! The closure form: its steps cannot be forgotten. For a key without a row it sends
//!
//! 1. `begin deferrable`, by itself. DEFERRABLE marks the transaction: step 4 refuses if the work has ended it;
//! 2. the look (`sql/statements/look.sql`), which tries the key's advisory lock if it sees no row. A finished row is
//!    replayed. If another transaction has the lock, the call rolls back and answers *in progress*, or waits, if its
//!    caller allows that, and begins again. (At SERIALIZABLE a savepoint follows, for a kept failure.);
//! 3. the work. If it fails, the call rolls back and looks again, in a new transaction without the lock: the work may
//!    have failed because it is a duplicate;
//! 4. the INSERT of the finished row (`sql/statements/insert_finished.sql`), which tries the lock again. It returns no
//!    row if another call has written one since the look, and fails (`IK004`) if another transaction has the lock. The
//!    call then rolls back and begins again;
//! 5. `COMMIT`, by itself.
//!
//! An [optimistic](Operation::optimistic) call skips step 2 at its first start: if the key is finished, step 4 rolls
//! its work back, and the next start looks. Only such a call meets `IK004`.
//!
//! A row that may be overwritten (claim lapsed, or retention over) goes through `begin_operation` after the look, and
//! `complete` or `fail` instead of the INSERT. A kept failure repeats steps 1, 2, 4 and 5 without the work; at
//! SERIALIZABLE it returns to the savepoint instead. After contention a call starts again, 20 starts in all
//! (`restarts.rs`). `call.rs` has the steps.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::{PgConnection, PgPool};
use tracing::{Instrument, Span};

use super::call::Call;
use super::observed::{Observed, observed, unprotected};
use super::outcome::{Done, Ending, answered, count};
use super::performing::{Begun, Ended};
use super::run_error::RunError;
use super::work_error::WorkError;
use crate::client::PgOnce;
use crate::error::{Error, ErrorKind};
use crate::operation::Operation;
use crate::operation::response::Response;
use crate::protocol::answer::Finished;
use crate::rollout::RolloutMode;
use crate::telemetry::Counts;
use crate::telemetry::spans::span;

impl PgOnce {
    /// Runs `work` once per key, in one transaction with the key and its response.
    ///
    /// Takes a connection, opens a transaction, begins, runs `work`, completes with the returned value as JSON, and
    /// commits. A retry of a finished key gets the stored value; `work` does not run. The first caller, too, gets the
    /// value as it is read back from that JSON. A value that cannot be read back (a NaN, a field that is not written) is
    /// refused, and everything is rolled back.
    ///
    /// Serialization failures and deadlocks (40001, 40P01) rerun the whole transaction, so `work` may be called several
    /// times; only one call's writes are ever committed. [Compile errors](crate::_docs::compile_errors) lists those of
    /// closures.
    ///
    /// If `work` fails, everything is rolled back and nothing is remembered. After
    /// [`Failure::keep`](crate::Failure::keep) its writes are undone, and the failure is stored and replayed. In both
    /// cases, if another call has finished the key meanwhile, that response is the answer.
    ///
    /// Inside `work`, nested transactions (`tx.begin()`) are savepoints. End each of them, and do not drop a `begin`
    /// half way: sqlx 0.9.0 then rolls back the whole transaction without telling the work, and `run` answers
    /// [`TransactionLost`](crate::ErrorKind::TransactionLost). Never send `COMMIT` or `ROLLBACK`: writes before the
    /// `COMMIT`, or after either, are committed without the key, and the next call repeats them. `run` then also
    /// answers `TransactionLost`, [where it can tell](crate::_docs::protocol#lock-only-run-and-transactional-routes).
    ///
    /// In a [rollout mode](Operation::mode) other than *required*, the key is ignored or only observed, and `work` always
    /// runs.
    ///
    /// Uses a connection while `work` runs, and while it waits for another open transaction. Of the calls that
    /// [wait](crate::Policy::wait) with one request, on one pool and through clones of one `PgOnce`, at most one waits
    /// in the database; the others connect only to look. Do not call other services from `work`: an open transaction
    /// blocks vacuum. Use leased claims for that.
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
    /// [`RunError`]. After [`CommitUnknown`](crate::ErrorKind::CommitUnknown), call again with the same key to find
    /// out.
    ///
    /// # Cancel safety
    /// Cancel safe: if dropped, the transaction rolls back, because its connection is closed and never returns to the
    /// pool open. If dropped during COMMIT, it may be committed. In both cases call again with the same key.
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
        let counts = self.counts(op);
        let span = span!("pgonce.run");
        counts.begun(&span, op);
        // Read once: it may change at any time.
        match self.mode_of(op) {
            mode @ (RolloutMode::Off | RolloutMode::Observe) => {
                let run = self.run_unprotected(pool, op, work, mode, &counts, &span);
                run.instrument(span.clone()).await
            }
            RolloutMode::Optional | RolloutMode::Required => {
                let waiting = self.lines.wait(pool, self.policy_of(op).wait, Arc::clone(&counts));
                let call = Call::new(self, pool, op, waiting);
                let ended = perform(call, op, work).instrument(span.clone()).await;
                count(&ended, op, &counts, &span);
                ended
            }
        }
    }

    /// `run` where the key is ignored or only observed.
    async fn run_unprotected<T, E, Kind, F>(
        &self,
        pool: &PgPool,
        op: &Operation,
        work: F,
        mode: RolloutMode,
        counts: &Arc<Counts>,
        span: &Span,
    ) -> Result<Done<T>, RunError<E>>
    where
        T: Serialize + DeserializeOwned,
        E: WorkError<Kind>,
        F: AsyncFnOnce(&mut PgConnection) -> Result<T, E> + Clone,
    {
        let is_off = mode == RolloutMode::Off;
        let op = &Operation { optimistic: false, lock_replay: false, observed: true, ..op.clone() };
        let waiting = self.lines.wait(pool, Duration::ZERO, Arc::clone(counts));
        let mut call = Call::new(self, pool, op, waiting);
        let Observed { ended, told } = match is_off {
            true => Observed { ended: unprotected(&mut call, op, work).await, told: None },
            false => observed(&mut call, op, work).await,
        };
        if is_off || told.is_some() {
            span.record("answer", if is_off { "off" } else { "observed" });
            if let Err(RunError::Protocol(error)) = &ended {
                counts.note(&op.scope, &op.key, error);
            }
        } else {
            count(&ended, op, counts, span);
        }
        if let Some(told) = told {
            counts.observed(op, &told);
        }
        ended.map_err(never_again)
    }
}

/// Where the work always runs, another call does not find out what became of a COMMIT without an answer.
fn never_again<E>(error: RunError<E>) -> RunError<E> {
    match error {
        RunError::Protocol(error) if error.kind() == ErrorKind::CommitUnknown => {
            let says = "COMMIT got no answer; the work may be done or not, and while its key is off or observed, another \
                        call would run it again";
            Error::new(ErrorKind::Database, says).into()
        }
        error => error,
    }
}

/// The steps at the head of this file.
async fn perform<T, E, Kind, F>(
    mut call: Call<'_>,
    op: &Operation,
    work: F,
) -> Result<Done<T>, RunError<E>>
where
    T: Serialize + DeserializeOwned,
    E: WorkError<Kind>,
    F: AsyncFnOnce(&mut PgConnection) -> Result<T, E> + Clone,
{
    loop {
        let mut tx = match call.begin().await? {
            Begun::Started(tx) => tx,
            Begun::Answered(answer) => return answered(answer),
        };
        // A value that no retry could read is a failure of the work.
        let storable = |value| {
            Response::of_value(value, op.secret).map_err(|error| Ending::Undo(error.into()))
        };
        let worked = work.clone()(&mut tx).await.map_err(E::into_ending).and_then(storable);
        let (outcome, ended) = match worked {
            Ok((value, response)) => {
                let ended = call.finish(tx, Finished::Completed, response).await;
                (Ok(Done::new(value)), ended)
            }
            Err(Ending::Keep(response)) => {
                let ended = call.keep(tx, response.clone()).await;
                (Err(RunError::Failed { response, replayed: false }), ended)
            }
            Err(Ending::Undo(error)) => match call.undo(tx).await {
                // Never retryable: what the work wrote may be committed.
                Err(lost) => return Err(lost.after(&error.redacted()).into()),
                Ok(Some(answer)) => return answered(answer),
                Ok(None) if error.is_contention() && call.lost_to_another().await => continue,
                Ok(None) => return Err(error),
            },
        };
        match ended {
            Ok(Ended::Committed) => return outcome,
            Ok(Ended::Answered(answer)) => return answered(answer),
            Ok(Ended::Lost) => {} // another call got the key: begin again
            Err(error) if call.starts_again(&error).await => {}
            Err(error) => return Err(error.into()),
        }
    }
}
