//! The closure form: begin, run, complete, commit. It cannot be forgotten half way.

use std::error::Error as StdError;
use std::fmt;
use std::ops::Deref;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::{PgConnection, PgPool};
use tokio::time::Instant;

use crate::answer::{Begin, Finished, Held, InProgress, Mismatch, Replay};
use crate::checkout::{Asked, Checkout};
use crate::error::{Error, ErrorKind, is_retryable, sqlstate_in};
use crate::once::{PgOnce, RoundTrips};
use crate::operation::Operation;
use crate::response::Response;

pub(crate) type BoxError = Box<dyn StdError + Send + Sync>;

/// What [`PgOnce::run`] returns: the value, performed now or replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done<T> {
    value: T,
    replayed: bool,
}

/// How work ends without success. Any error becomes one that undoes everything, so `?` works;
/// [`Failure::keep`] makes a failure final.
///
/// ```
/// use pgonce::{Failure, Response};
/// let undone: Failure = std::io::Error::other("try again later").into();
/// let kept = Failure::keep(Response::bytes("card declined").with_code(402));
/// ```
pub struct Failure(pub(crate) Ending);

pub(crate) enum Ending {
    Undo(BoxError),
    Keep(Response),
}

/// Why [`PgOnce::run`] has no value to return.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The work failed, or a deferred constraint of it refused the COMMIT. Everything was rolled back and nothing is
    /// remembered: the same key runs again. The error is the closure's own; downcast it to get its type back (one that came in an
    /// `anyhow::Error` shows only its text and its sources, and a pool's time-out in it is not recognised
    /// as retryable).
    #[error("the work failed; nothing was kept")]
    Work(#[source] BoxError),
    /// The work ended in a failure that was meant to be final ([`Failure::keep`]), now or in an
    /// earlier attempt. Its writes were undone; every retry gets this response.
    #[error("the operation failed for good")]
    #[non_exhaustive]
    Failed {
        /// The response that was kept.
        response: Response,
        /// Whether an earlier attempt kept it.
        replayed: bool,
    },
    /// The operation was done before, but its response was not kept (too large, or secret).
    #[error("the operation is done; its response was not kept")]
    Omitted(Response),
    /// Another claim on the key is alive, and the operation's wait is over.
    #[error("the operation is in progress elsewhere")]
    InProgress(InProgress),
    /// The key belongs to a request with another fingerprint.
    #[error("the key belongs to another request")]
    Mismatch(Mismatch),
    /// The key waits for an operator.
    #[error("the operation is held for an operator")]
    Held(Held),
    /// pgonce or the database failed. [`Error::kind`] tells an unknown COMMIT from the rest.
    #[error("the operation could not be protected")]
    Protocol(#[from] Error),
}

/// How often a transaction that lost against another one (40001, 40P01) is run, the first included.
pub(crate) const ATTEMPTS_MAX: u32 = 10;
/// The longest pause between two looks at a claim that another process holds.
const LOOK_AGAIN_MAX: Duration = Duration::from_millis(250);

impl PgOnce {
    /// Runs `work` once per key, in one transaction with the key and its response.
    ///
    /// Takes a connection, opens a transaction, begins, runs `work` on it, completes with the
    /// returned value as JSON, commits. A retry of a finished key gets the stored value and does not
    /// run `work`. Serialization failures and deadlocks (40001, 40P01) run the whole transaction
    /// again, so `work` may be called several times; only one call's writes are ever committed.
    ///
    /// When `work` fails, everything is rolled back and nothing is remembered, unless it returns
    /// [`Failure::keep`]: then its writes are undone, and the failure is stored and replayed.
    ///
    /// Inside `work`, nested transactions (`tx.begin()`) are savepoints. Let each of them end, and do not
    /// drop a `begin` half way: sqlx 0.9.0 then rolls back the whole transaction behind the work's back.
    /// `run` notices and answers [`TransactionLost`](ErrorKind::TransactionLost). Never send `COMMIT` or
    /// `ROLLBACK` yourself: what was written before is committed without its key, and the next call does it again.
    /// `run` answers `TransactionLost` then, too.
    ///
    /// The connection is in use while `work` runs, and while this waits for an open transaction elsewhere. Calls that
    /// share this `PgOnce` or a clone of it, a pool and a key take one between them while they
    /// [wait](Operation::wait). Do not call other services from `work`: an open
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
    /// [`RunError`]. After [`CommitUnknown`](ErrorKind::CommitUnknown), call it again with the same
    /// key to find out.
    ///
    /// # Cancel safety
    /// Cancel safe. Dropped at any point, the transaction is rolled back by closing its connection,
    /// never left open in the pool; dropped during COMMIT, it may have been committed. Calling it
    /// again with the same key is right in both cases.
    pub async fn run<T, E, F>(
        &self,
        pool: &PgPool,
        op: &Operation,
        work: F,
    ) -> Result<Done<T>, RunError>
    where
        T: Serialize + DeserializeOwned,
        E: Into<Failure>,
        F: AsyncFnOnce(&mut PgConnection) -> Result<T, E> + Clone,
    {
        op.check(self.retention)?;
        let deadline = Instant::now() + op.wait;
        let mut attempt = 1;
        let mut looks = 0;
        loop {
            let left = || deadline.saturating_duration_since(Instant::now());
            let wait = left();
            // What has lost once has its row written before its work is run again.
            let round_trips = if attempt == 1 { self.round_trips } else { RoundTrips::Five };
            let pause = match self.run_once(pool, op, wait, round_trips, work.clone()).await {
                Err(error) if attempt < ATTEMPTS_MAX && lost_to_another(&error) => {
                    attempt += 1;
                    jitter(Duration::from_millis(2 << attempt.min(7)))
                }
                Err(RunError::InProgress(_)) if !left().is_zero() => {
                    looks += 1;
                    pause_before_look(looks).min(left())
                }
                result => return result,
            };
            tokio::time::sleep(pause).await; // without a connection
        }
    }

    /// One transaction of [`run`](PgOnce::run).
    async fn run_once<T, E, F>(
        &self,
        pool: &PgPool,
        op: &Operation,
        wait: Duration,
        round_trips: RoundTrips,
        work: F,
    ) -> Result<Done<T>, RunError>
    where
        T: Serialize + DeserializeOwned,
        E: Into<Failure>,
        F: AsyncFnOnce(&mut PgConnection) -> Result<T, E> + Clone,
    {
        let (mut checkout, claim) = match Checkout::ask(pool, self, op, wait, round_trips).await? {
            Asked::Started(checkout, claim) => (checkout, claim),
            Asked::Answered(answer) => return answered(answer),
        };
        match work(&mut checkout).await.map_err(|error| error.into().0) {
            Ok(value) => {
                let mut response = match Response::json(&value) {
                    Ok(response) => response,
                    Err(error) => {
                        checkout.rollback().await;
                        return Err(error.into());
                    }
                };
                response.omitted = op.secret;
                checkout.complete(claim, response).await.map_err(RunError::of_end)?;
                Ok(Done { value, replayed: false })
            }
            Err(Ending::Keep(response)) => {
                checkout.fail(claim, response.clone()).await?;
                Err(RunError::Failed { response, replayed: false })
            }
            Err(Ending::Undo(error)) => {
                Err(match checkout.undo().await {
                    // Never retryable, whatever the error: the work, or a connection that broke, may have
                    // committed before.
                    Err(lost) => lost.caused_by(error).into(),
                    Ok(()) => RunError::Work(error),
                })
            }
        }
    }
}

/// What to return for an answer other than *started*.
pub(crate) fn answered<T: DeserializeOwned>(answer: Begin) -> Result<Done<T>, RunError> {
    match answer {
        Begin::Started(_) => unreachable!("work is run for a started claim"),
        Begin::Replay(replay) => replayed(replay),
        Begin::InProgress(wait) => Err(RunError::InProgress(wait)),
        Begin::Mismatch(mismatch) => Err(RunError::Mismatch(mismatch)),
        Begin::Held(held) => Err(RunError::Held(held)),
    }
}

fn replayed<T: DeserializeOwned>(replay: Replay) -> Result<Done<T>, RunError> {
    match replay.status {
        Finished::Failed => Err(RunError::Failed { response: replay.response, replayed: true }),
        Finished::Completed if replay.response.is_omitted() => {
            Err(RunError::Omitted(replay.response))
        }
        Finished::Completed => Ok(Done { value: replay.json()?, replayed: true }),
    }
}

/// Whether the database gave up this transaction for another one, in our statements or in the work's.
fn lost_to_another(error: &RunError) -> bool {
    match error {
        RunError::Protocol(error) => error.kind() == ErrorKind::Contention,
        RunError::Work(error) => is_contention(error.as_ref()),
        _ => false,
    }
}

/// Whether an error of the work is that the database gave up its transaction for another one.
pub(crate) fn is_contention(error: &(dyn StdError + 'static)) -> bool {
    matches!(sqlstate_in(error), Some("40001" | "40P01"))
}

/// The pause before another look at a claim that another process holds; it grows with the looks.
pub(crate) fn pause_before_look(looks: u32) -> Duration {
    jitter(LOOK_AGAIN_MAX.min(Duration::from_millis(5 << looks.min(8))))
}

/// Half to all of `pause`, so that those who lost together do not meet again.
pub(crate) fn jitter(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + fastrand::f64() / 2.0)
}

impl<T> Done<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { value, replayed: false }
    }

    /// The value.
    #[must_use]
    pub fn into_inner(self) -> T {
        self.value
    }

    /// Whether the value comes from an earlier run of the work.
    #[must_use]
    pub fn is_replay(&self) -> bool {
        self.replayed
    }
}

impl<T> Deref for Done<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl Failure {
    /// A final failure: the work's writes are undone, `response` is stored in the same COMMIT and
    /// replayed to every retry.
    #[must_use]
    pub fn keep(response: Response) -> Self {
        Self(Ending::Keep(response))
    }

    /// The error that undoes the work, for those who handle one kind of it; `None` for a failure that is kept.
    ///
    /// ```
    /// use pgonce::{Error, ErrorKind, Failure};
    /// fn is_lost(failure: &Failure) -> bool {
    ///     let error = failure.error().and_then(|error| error.downcast_ref::<Error>());
    ///     error.is_some_and(|error| error.kind() == ErrorKind::ClaimLost)
    /// }
    /// assert!(!is_lost(&Failure::from("card declined")));
    /// ```
    #[must_use]
    pub fn error(&self) -> Option<&(dyn StdError + Send + Sync + 'static)> {
        match &self.0 {
            Ending::Undo(error) => Some(error.as_ref()),
            Ending::Keep(_) => None,
        }
    }
}

impl<E: Into<BoxError>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(Ending::Undo(error.into()))
    }
}

// By hand, both: the derived ones would print the DETAIL of a database error, which can quote a row.
impl fmt::Debug for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Work(error) => write!(f, "Work({error})"),
            Self::Failed { response, replayed } => {
                write!(f, "Failed {{ response: {response:?}, replayed: {replayed} }}")
            }
            Self::Omitted(response) => write!(f, "Omitted({response:?})"),
            Self::InProgress(wait) => write!(f, "{wait:?}"),
            Self::Mismatch(mismatch) => write!(f, "{mismatch:?}"),
            Self::Held(held) => write!(f, "{held:?}"),
            Self::Protocol(error) => write!(f, "Protocol({error:?})"),
        }
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Ending::Undo(error) => write!(f, "Failure({error})"),
            Ending::Keep(response) => write!(f, "Failure::keep({response:?})"),
        }
    }
}

impl RunError {
    /// What an error at the end of the work's transaction is: its own failure, when a constraint of it refused.
    pub(crate) fn of_end(error: Error) -> Self {
        error.into_works_own().map_or_else(Self::Protocol, Self::Work)
    }

    /// Whether the same call with the same key may succeed later. A lost claim is among them
    /// ([`ClaimLost`](ErrorKind::ClaimLost)): the next call gets the new holder's response, or is told that it is
    /// in progress. For the work's own errors: whether a database error that may pass is among their causes.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::InProgress(_) => true,
            Self::Protocol(error) => error.is_retryable() || error.kind() == ErrorKind::ClaimLost,
            Self::Work(error) => is_retryable(error.as_ref()),
            _ => false,
        }
    }
}
