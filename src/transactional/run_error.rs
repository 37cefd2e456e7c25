//! Why `run` and `run_leased` return no value.

use std::convert::Infallible;
use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use super::later::Later;
use super::restarts::is_contention;
use super::work_error::WorkError;
use crate::error::{
    Decided, Error, ErrorKind, OPAQUE, causes, is_retryable, redacted, sqlstate_in,
};
use crate::operation::response::Response;
use crate::protocol::answer::{Held, InProgress, Mismatch};

/// Why [`PgOnce::run`](crate::PgOnce::run) returns no value. `E` is the error type of the work.
///
/// Your error type can take in the other variants, so that `?` works on the result of `run`:
///
/// ```
/// use std::convert::Infallible;
/// use pgonce::RunError;
///
/// #[derive(Debug, thiserror::Error)]
/// enum PaymentError {
///     #[error("the card was declined")]
///     Declined,
///     #[error(transparent)]
///     Database(#[from] sqlx::Error),
///     #[error(transparent)]
///     Once(RunError<Infallible>),
/// }
///
/// impl From<RunError<PaymentError>> for PaymentError {
///     fn from(error: RunError<PaymentError>) -> Self {
///         error.into_work().unwrap_or_else(Self::Once)
///     }
/// }
///
/// impl From<pgonce::Error> for PaymentError {
///     fn from(error: pgonce::Error) -> Self {
///         Self::Once(error.into())
///     }
/// }
/// ```
#[non_exhaustive]
pub enum RunError<E> {
    /// The work failed, and its writes were rolled back: the same key may run again. `run` remembers nothing; leased
    /// work keeps its recorded steps.
    #[non_exhaustive]
    Work {
        /// What the work returned.
        error: E,
        #[doc(hidden)]
        cause: Cause<E>,
    },
    /// The work ended in a final failure ([`Failure::keep`](crate::Failure::keep)), now or in an earlier attempt. Its
    /// writes were undone; every retry gets this response.
    #[non_exhaustive]
    Failed {
        /// The kept response.
        response: Response,
        /// Whether an earlier attempt kept it.
        replayed: bool,
    },
    /// The operation was done before, but its response was not kept (too large, or secret).
    Omitted(Response),
    /// Another claim on the key is live, or another transaction has its lock, and the wait is over.
    InProgress(InProgress),
    /// The key belongs to a request with another fingerprint.
    Mismatch(Mismatch),
    /// The key waits for an operator.
    Held(Held),
    /// pgonce or the database failed. [`Error::kind`] tells an unknown COMMIT from the rest.
    Protocol(Error),
}

/// How to find the cause of an error when its [`WorkError`] is no longer known.
#[doc(hidden)]
#[allow(missing_debug_implementations, reason = "cannot be named outside")]
pub struct Cause<E>(fn(&E) -> Option<&(dyn StdError + 'static)>);

impl<E> RunError<E> {
    pub(crate) fn work<Kind>(error: E) -> Self
    where
        E: WorkError<Kind>,
    {
        Self::Work { error, cause: Cause(E::cause) }
    }

    /// The work's own error, or else what remains.
    ///
    /// ```
    /// # use pgonce::RunError;
    /// # fn example(error: RunError<sqlx::Error>) {
    /// match error.into_work() {
    ///     Ok(own) => println!("the work failed: {own}"),
    ///     Err(rest) => println!("it did not run, or could not be committed: {rest}"),
    /// }
    /// # }
    /// ```
    ///
    /// # Errors
    /// Every variant but [`Work`](RunError::Work).
    pub fn into_work(self) -> Result<E, RunError<Infallible>> {
        Err(match self {
            Self::Work { error, .. } => return Ok(error),
            Self::Failed { response, replayed } => RunError::Failed { response, replayed },
            Self::Omitted(response) => RunError::Omitted(response),
            Self::InProgress(wait) => RunError::InProgress(wait),
            Self::Mismatch(mismatch) => RunError::Mismatch(mismatch),
            Self::Held(held) => RunError::Held(held),
            Self::Protocol(error) => RunError::Protocol(error),
        })
    }

    /// Whether the same call with the same key may succeed later. [`ClaimLost`](ErrorKind::ClaimLost) is retryable
    /// here: the next call gets the new holder's response, or *in progress*. An error of the work is retryable if a
    /// [`Failure::later`](crate::Failure::later), or a database error that may pass, is among its causes.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::InProgress(_) => true,
            Self::Work { .. } | Self::Protocol(_) => self.source().is_some_and(|error| {
                let ours = causes(error).find_map(|error| error.downcast_ref::<Error>());
                ours.is_some_and(|error| error.kind() == ErrorKind::ClaimLost)
                    || is_retryable(error)
            }),
            _ => false,
        }
    }

    /// When to try again, if known: the pause of a [`Failure::later`](crate::Failure::later), or how long another claim
    /// may still take.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Work { .. } => self.source().and_then(Later::in_causes),
            Self::InProgress(wait) => Some(wait.retry_after()),
            _ => None,
        }
    }

    /// The SQLSTATE of the database's answer, if the database answered.
    #[must_use]
    pub fn sqlstate(&self) -> Option<String> {
        self.source().and_then(sqlstate_in).map(str::to_owned)
    }

    /// Whether the work's transaction ended in a serialization failure or deadlock.
    pub(crate) fn is_contention(&self) -> bool {
        self.source().is_some_and(is_contention)
    }

    /// What logs may show of its cause.
    pub(crate) fn redacted(&self) -> String {
        self.source().map_or_else(|| OPAQUE.to_owned(), redacted)
    }
}

impl<E> From<Error> for RunError<E> {
    fn from(error: Error) -> Self {
        Self::Protocol(error)
    }
}

impl<E> fmt::Display for RunError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            // Without the work's own text, which may contain anything.
            Self::Work { .. } => {
                return write!(f, "nothing was kept: {}", self.redacted());
            }
            Self::Failed { .. } => "the operation failed for good",
            Self::Omitted(_) => "the operation is done; its response was not kept",
            Self::InProgress(_) => "the operation is in progress elsewhere",
            Self::Mismatch(_) => "the key belongs to another request",
            Self::Held(_) => "the operation is held for an operator",
            Self::Protocol(error) => {
                return write!(f, "the operation could not be protected: {error}");
            }
        })
    }
}

// By hand: a derived one would print the DETAIL of a database error, which can quote a row.
impl<E> fmt::Debug for RunError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Work { .. } => match self.source() {
                Some(error) => write!(f, "Work({error})"),
                None => write!(f, "Work({OPAQUE})"),
            },
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

const FAILED: Decided = Decided("a final failure is stored");
const OMITTED: Decided = Decided("the stored response is omitted");

impl<E> StdError for RunError<E> {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Work { error, cause } => cause.0(error),
            Self::InProgress(wait) => Some(wait),
            Self::Mismatch(mismatch) => Some(mismatch),
            Self::Held(held) => Some(held),
            Self::Protocol(error) => Some(error),
            Self::Failed { .. } => Some(&FAILED),
            Self::Omitted(_) => Some(&OMITTED),
        }
    }
}
