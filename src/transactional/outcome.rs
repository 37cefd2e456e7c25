//! What work returns to `run` and `run_leased`, and what they return.

use std::error::Error as StdError;
use std::fmt;
use std::ops::Deref;

use serde::de::DeserializeOwned;
use tracing::Span;

use super::run_error::RunError;
use super::work_error::WorkError;
use crate::error::{Error, ErrorKind};
use crate::operation::Operation;
use crate::operation::response::Response;
use crate::protocol::answer::{Begin, Finished, Replay};
use crate::telemetry::{Counts, Event, spans};

pub(crate) type BoxError = Box<dyn StdError + Send + Sync>;

/// What [`PgOnce::run`](crate::PgOnce::run) returns: the value, performed now or replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done<T> {
    value: T,
    replayed: bool,
}

/// How work ends without success, for work that fails in more than one way. Any error becomes a failure that undoes
/// everything, so `?` works; [`Failure::keep`] makes a failure final.
///
/// A pgonce [`Error`](crate::Error) in it comes back as [`RunError::Protocol`], any other error as [`RunError::Work`].
///
/// ```
/// use pgonce::{Failure, Response};
/// let undone: Failure = std::io::Error::other("try again later").into();
/// let kept = Failure::keep(Response::bytes("card declined").with_code(402));
/// ```
pub struct Failure(Kind);

enum Kind {
    Undo(BoxError),
    Keep(Response),
}

/// What happens to the work's writes and its key when the work fails.
#[allow(missing_debug_implementations, reason = "cannot be named outside")]
pub enum Ending<E> {
    /// Everything is undone, and the caller gets this error.
    Undo(RunError<E>),
    /// The writes are undone, and the failure is stored.
    Keep(Response),
}

/// What to return for an answer other than *started*.
pub(crate) fn answered<T: DeserializeOwned, E>(answer: Begin) -> Result<Done<T>, RunError<E>> {
    match answer {
        Begin::Started(_) => unreachable!("work is run for a started claim"),
        Begin::Replay(replay) => replayed(replay),
        Begin::InProgress(wait) => Err(RunError::InProgress(wait)),
        Begin::Mismatch(mismatch) => Err(RunError::Mismatch(mismatch)),
        Begin::Held(held) => Err(RunError::Held(held)),
    }
}

fn replayed<T: DeserializeOwned, E>(replay: Replay) -> Result<Done<T>, RunError<E>> {
    match replay.status {
        Finished::Failed => Err(RunError::Failed { response: replay.response, replayed: true }),
        Finished::Completed if replay.response.is_omitted() => {
            Err(RunError::Omitted(replay.response))
        }
        Finished::Completed => {
            let value = replay.parse_json();
            let value = value.map_err(|error| error.of_kind(ErrorKind::ReplayUnreadable))?;
            Ok(Done { value, replayed: true })
        }
    }
}

/// Counts how a call of `run` ended, and says so in its span.
pub(crate) fn count<T, E>(
    ended: &Result<Done<T>, RunError<E>>,
    op: &Operation,
    counts: &Counts,
    span: &Span,
) {
    let events = match described(ended) {
        Ok((answer, events)) => {
            span.record("answer", answer);
            events
        }
        Err(error) => {
            spans::record(span, error);
            return counts.note(&op.scope, &op.key, error);
        }
    };
    for &event in events {
        counts.count(&op.scope, event);
        if event == Event::Replayed {
            counts.duplicate(&op.scope, op.value);
        }
    }
}

/// Says in the span of `run_leased` how it ended. Its claim counts.
pub(crate) fn say<T, E>(ended: &Result<Done<T>, RunError<E>>, span: &Span) {
    match described(ended) {
        Ok((answer, _)) => drop(span.record("answer", answer)),
        Err(error) => spans::record(span, error),
    }
}

fn described<T, E>(
    ended: &Result<Done<T>, RunError<E>>,
) -> Result<(&'static str, &'static [Event]), &Error> {
    use Event as Of;
    Ok(match ended {
        Ok(done) if !done.replayed => ("completed", &[Of::Started, Of::Completed]),
        Ok(_) | Err(RunError::Failed { replayed: true, .. }) => ("replayed", &[Of::Replayed]),
        Err(RunError::Omitted(_)) => ("replayed", &[Of::Replayed, Of::Omitted]),
        Err(RunError::Failed { .. }) => ("failed", &[Of::Started, Of::Failed]),
        Err(RunError::Work { .. }) => ("released", &[Of::Started, Of::Released]),
        Err(RunError::InProgress(_)) => ("in_progress", &[Of::InProgress]),
        Err(RunError::Mismatch(_)) => ("mismatch", &[Of::Mismatch]),
        Err(RunError::Held(_)) => ("held", &[Of::Held]),
        Err(RunError::Protocol(error)) => return Err(error),
    })
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
    /// A final failure: the work's writes are undone (recorded steps stay), and `response` is stored and replayed to
    /// every retry.
    #[must_use]
    pub fn keep(response: Response) -> Self {
        Self(Kind::Keep(response))
    }

    /// The error that undoes the work, to react to one kind of it; `None` for a kept failure.
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
            Kind::Undo(error) => Some(error.as_ref()),
            Kind::Keep(_) => None,
        }
    }
}

impl<E: Into<BoxError>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(Kind::Undo(error.into()))
    }
}

// By hand: a derived one would print the DETAIL of a database error, which can quote a row.
impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Undo(error) => write!(f, "Failure({error})"),
            Kind::Keep(response) => write!(f, "Failure::keep({response:?})"),
        }
    }
}

impl WorkError for Failure {
    fn cause(&self) -> Option<&(dyn StdError + 'static)> {
        self.error().map(|error| error as _)
    }

    fn keep(&self) -> Option<Response> {
        match &self.0 {
            Kind::Keep(response) => Some(response.clone()),
            Kind::Undo(_) => None,
        }
    }

    fn into_ending(self) -> Ending<Self> {
        match self.0 {
            Kind::Keep(response) => Ending::Keep(response),
            Kind::Undo(error) => match error.downcast::<Error>() {
                Ok(ours) => Ending::Undo((*ours).into()),
                Err(works) => Ending::Undo(RunError::work(Self(Kind::Undo(works)))),
            },
        }
    }
}
