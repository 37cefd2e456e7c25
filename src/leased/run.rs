//! The closure form for work that also acts outside the database.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::PgPool;
use tracing::{Instrument, Span};

use crate::client::PgOnce;
use crate::error::{Error, ErrorKind, Result, of_claims_call, redacted};
use crate::leased::before::before;
use crate::leased::heartbeat::{Heartbeat, Stopped};
use crate::leased::lease::Lease;
use crate::leased::work::Work;
use crate::operation::response::Response;
use crate::operation::{OnLapse, Operation};
use crate::protocol::answer::{Begin, Finished};
use crate::protocol::claim::{Claim, ClaimId};
use crate::protocol::procedure;
use crate::telemetry::spans::span;
use crate::telemetry::{Counts, Event};
use crate::transactional::OwnedTransaction;
use crate::transactional::{Done, Ending, Next, RunError, WorkError, answered, say};

/// How long to try to give up a claim whose work got no answer.
const GIVE_UP_MAX: Duration = Duration::from_secs(5);

impl PgOnce {
    /// Runs `work` under a lease, for operations that call other services or take long. While `work` runs, no
    /// transaction is open and no pooled connection is in use, unless `work` asks for one.
    ///
    /// Commits the claim, renews its lease over a connection beside the pool, and completes the operation with the
    /// returned value as JSON, in one transaction with the writes through [`Work::last_tx`]. A retry of a finished key
    /// gets the stored value. After a crash the next call takes over the lapsed claim; recorded [steps](Work::step) are
    /// not done again.
    ///
    /// If the claim is lost, `work` is dropped at its next await, nothing more of it is written, and the answer is
    /// [`ClaimLost`](ErrorKind::ClaimLost).
    ///
    /// If `work` fails or its end is refused, its last transaction rolls back and the claim lapses at once: the same
    /// key and request run again, without recorded steps, up to [`max_attempts`](crate::Policy::max_attempts). Under
    /// [`OnLapse::Hold`] the claim lapses with its lease, and the key is held for an operator: the remote's state is
    /// unknown. [`Failure::keep`](crate::Failure::keep) ends the operation for good.
    ///
    /// ```no_run
    /// # use pgonce::{Lease, Operation, PgOnce, Work};
    /// # async fn ask_provider(key: pgonce::Key) -> Result<String, std::io::Error> { Ok(String::new()) }
    /// # async fn example(pool: sqlx::PgPool, once: PgOnce) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    /// let op = Operation::new("acme/orders.checkout", "order-17")?;
    /// let lease = Lease::new(std::time::Duration::from_secs(30))?;
    /// let receipt = once
    ///     .run_leased(&pool, &op, lease, async |work: &mut Work| {
    ///         let key = work.derived_key("charge");
    ///         let receipt = work.step("charge", async || ask_provider(key).await).await?;
    ///         let tx = work.last_tx().await?;
    ///         sqlx::query("insert into receipt values ($1)").bind(&receipt).execute(tx).await?;
    ///         Ok::<_, pgonce::Failure>(receipt)
    ///     })
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`RunError`], as [`run`](PgOnce::run). If the last transaction ends with
    /// [`CommitUnknown`](ErrorKind::CommitUnknown), the key is completed, or its claim lapses with its lease.
    ///
    /// # Cancel safety
    /// If dropped, `work` is dropped too. The claim lapses with its lease; what was recorded stays.
    pub async fn run_leased<T, E, Kind, F>(
        &self,
        pool: &PgPool,
        op: &Operation,
        lease: Lease,
        work: F,
    ) -> Result<Done<T>, RunError<E>>
    where
        T: Serialize + DeserializeOwned,
        E: WorkError<Kind>,
        F: AsyncFnOnce(&mut Work) -> Result<T, E>,
    {
        let work = async |given: &mut Work| work(given).await.map_err(E::into_ending);
        self.perform_leased(pool, op, lease, work).await
    }

    pub(crate) async fn perform_leased<T, E, F>(
        &self,
        pool: &PgPool,
        op: &Operation,
        lease: Lease,
        work: F,
    ) -> Result<Done<T>, RunError<E>>
    where
        T: Serialize + DeserializeOwned,
        F: AsyncFnOnce(&mut Work) -> Result<T, Ending<E>>,
    {
        let counts = self.counts(op);
        let span = span!("pgonce.run_leased");
        counts.begun(&span, op);
        let performed = async {
            match self.begin_patiently(pool, op, lease, &counts).await? {
                Begin::Started(claim) => self.perform_claimed(pool, op, lease, claim, work).await,
                answer => answered(answer),
            }
        };
        let ended = performed.instrument(span.clone()).await;
        say(&ended, &span);
        ended
    }

    /// Does the work of a claim, and ends it.
    async fn perform_claimed<T, E, F>(
        &self,
        pool: &PgPool,
        op: &Operation,
        lease: Lease,
        mut claim: Claim,
        work: F,
    ) -> Result<Done<T>, RunError<E>>
    where
        T: Serialize + DeserializeOwned,
        F: AsyncFnOnce(&mut Work) -> Result<T, Ending<E>>,
    {
        let on_lapse = self.policy_of(op).on_lapse;
        claim.settled = true; // no log line on drop: its end or lapse is reported
        let mut heartbeat = Heartbeat::start(&self.beside, pool, &claim, lease);
        claim.answer_within = heartbeat.loans.answer_within();
        let mut given = Work::new(pool, op, claim.id(), claim.attempt(), &heartbeat.loans);
        let mut why = Stopped::Lost;
        let ended = {
            let mut stopped = pin!(async { why = heartbeat.stopped().await });
            before(&mut stopped, work(&mut given)).await
        };
        let tx = given.tx.take();
        let Some(ending) = ended else {
            drop((tx, heartbeat)); // the connection of `tx` is closed
            return Err(stopped(pool, on_lapse, &claim.id(), why).await.into());
        };
        let id = claim.id();
        let error: RunError<E> = match ending {
            Ok(value) => match self.end_leased(pool, op, claim, tx, value).await {
                Ok(value) => return Ok(Done::new(value)),
                // The operation may be completed: keep the claim.
                Err(error) if error.kind() == ErrorKind::CommitUnknown => {
                    id.note(&error);
                    return Err(error.into());
                }
                Err(error) => error.into(),
            },
            Err(Ending::Keep(response)) => {
                rollback(tx).await;
                let failed = Finished::Failed;
                match id.finish(pool, failed, response.clone(), claim.response_bytes_max).await {
                    Ok(()) => return Err(RunError::Failed { response, replayed: false }),
                    Err(error) => error.into(),
                }
            }
            Err(Ending::Undo(error)) => {
                if let Some(tx) = tx {
                    tx.rollback_after(error.sqlstate().as_deref()).await;
                }
                error
            }
        };
        drop(heartbeat); // no beats for a claim that is given up
        let noted = error.retry_after().is_none().then(|| error.redacted());
        give_up(pool, on_lapse, &id, noted.as_deref()).await;
        Err(error)
    }

    /// Completes the operation with the returned value, and commits it with the last writes, if any. Returns the value as
    /// a retry will read it.
    async fn end_leased<T: Serialize + DeserializeOwned>(
        &self,
        pool: &PgPool,
        op: &Operation,
        claim: Claim,
        tx: Option<OwnedTransaction>,
        value: T,
    ) -> Result<T> {
        let (value, response) = match Response::of_value(value, op.secret) {
            Ok(stored) => stored,
            Err(error) => {
                rollback(tx).await;
                return Err(error);
            }
        };
        match tx {
            Some(tx) => tx.complete(claim, response).await?,
            None => {
                let bytes_max = claim.response_bytes_max;
                claim.id().finish(pool, Finished::Completed, response, bytes_max).await?;
            }
        }
        Ok(value)
    }

    /// Begins. Waits for another caller's leased claim without a connection.
    async fn begin_patiently(
        &self,
        pool: &PgPool,
        op: &Operation,
        lease: Lease,
        counts: &Arc<Counts>,
    ) -> Result<Begin> {
        let mut waiting = self.lines.wait(pool, self.policy_of(op).wait, Arc::clone(counts));
        let answer = loop {
            let begin = self.ask_leased(pool, op, lease, waiting.in_database()).await?;
            match &begin {
                Begin::InProgress(wait) => match waiting.again(op, wait).await {
                    Next::Look => {}
                    Next::Replay(replay) => break Begin::Replay(replay),
                    Next::GiveUp => break begin,
                },
                Begin::Started(_) => break begin,
                _ => {
                    waiting.end(Some(&begin));
                    break begin;
                }
            }
        };
        answer.count(counts, op, &Span::none());
        Ok(answer)
    }
}

/// Lets the claim of failed work lapse: at once, or with its lease if an operator must decide. Stores how the work
/// ended; `None`: postponed. Best effort: otherwise the claim lapses with its lease, and the attempt counts.
pub(crate) async fn give_up(pool: &PgPool, on_lapse: OnLapse, id: &ClaimId, told: Option<&str>) {
    // Not released: a remote may have been called, so the key stays bound to this request.
    let at_once = on_lapse == OnLapse::Retry;
    let given_up = id.lapse(pool, told, at_once).await;
    match given_up {
        Ok(()) => id.count(Event::Released),
        Err(error) if error.kind() == ErrorKind::ClaimLost => {}
        Err(error) => {
            tracing::warn!(%error, sqlstate = error.sqlstate(), "a claim was not given up; it lapses");
        }
    }
}

impl ClaimId {
    /// Gives the claim up; its key stays bound to its request. `error`: how the work ended, without its data; `None`:
    /// postponed, the attempt does not count.
    async fn lapse(&self, pool: &PgPool, error: Option<&str>, at_once: bool) -> Result<()> {
        procedure::keeping(error, |text| async move {
            let query = || {
                self.named(&self.statements.lapse_leased)
                    .bind(text.clone())
                    .bind(at_once)
                    .bind(text.is_some())
            };
            procedure::call_patiently(pool, self.answer_within, query)
                .await
                .0
                .map(drop)
                .map_err(of_claims_call)
        })
        .await
    }
}

async fn rollback(tx: Option<OwnedTransaction>) {
    if let Some(tx) = tx {
        tx.rollback().await;
    }
}

/// The error of stopped work. If a connection was silent, the claim is still this holder's, and is given up.
pub(crate) async fn stopped(pool: &PgPool, on_lapse: OnLapse, id: &ClaimId, why: Stopped) -> Error {
    let (kind, message) = match why {
        Stopped::Lost => {
            (ErrorKind::ClaimLost, "the claim was lost while its work ran; the work was stopped")
        }
        Stopped::Silent => (
            ErrorKind::Connection,
            "a connection that was lent to the work gave no answer; the work was stopped",
        ),
    };
    let error = Error::new(kind, message);
    id.note(&error);
    if why == Stopped::Silent {
        // If every connection is silent, the claim lapses by itself.
        let told = redacted(&error);
        let given_up = give_up(pool, on_lapse, id, Some(&told));
        let _ = tokio::time::timeout(GIVE_UP_MAX, given_up).await;
    }
    error
}
