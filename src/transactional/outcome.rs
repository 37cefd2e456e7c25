//! What `run` and `run_leased` return.

use std::error::Error as StdError;
use std::fmt;
use std::ops::Deref;

use serde::de::DeserializeOwned;

use crate::error::{Error, ErrorKind, is_retryable};
use crate::operation::response::Response;
use crate::protocol::answer::{Begin, Finished, Held, InProgress, Mismatch, Replay};

pub(crate) type BoxError = Box<dyn StdError + Send + Sync>;

/// What [`PgOnce::run`](crate::PgOnce::run) returns: the value, performed now or replayed.
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

/// Why [`PgOnce::run`](crate::PgOnce::run) has no value to return.
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
    #[error("the operation could not be protected: {0}")]
    Protocol(#[from] Error),
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
        Finished::Completed => Ok(Done { value: replay.parse_json()?, replayed: true }),
    }
}

impl<T> Done<T> {
    /// Performed now.
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
