//! What begin answers.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use serde::de::DeserializeOwned;
use tracing::Span;

use crate::error::Result;
use crate::operation::Operation;
use crate::operation::response::Response;
use crate::protocol::claim::Claim;
use crate::telemetry::{Counts, Event};

/// The answer to a begin: one row of the protocol's decision table.
///
/// Only [`Started`](Begin::Started) has written anything. None of them aborts the caller's
/// transaction.
#[derive(Debug)]
#[must_use = "only `Started` allows the work to run"]
pub enum Begin {
    /// The caller holds the claim: perform, then complete, fail or release it.
    Started(Claim),
    /// It is done already: hand out the stored response.
    Replay(Replay),
    /// Another claim is alive: tell the caller to come back.
    InProgress(InProgress),
    /// The key belongs to a request with another fingerprint: refuse.
    Mismatch(Mismatch),
    /// The last claim lapsed and an operator must decide.
    Held(Held),
}

impl Begin {
    /// Counts the answer that a call got, and says it in the call's span. Not where keys are only observed: no
    /// caller is told the answer.
    pub(crate) fn count(&self, counts: &Counts, op: &Operation, span: &Span) {
        if op.observed && !matches!(self, Self::Started(_)) {
            return;
        }
        let (answer, event) = match self {
            Self::Started(claim) => {
                if claim.recovered {
                    counts.count(&op.scope, Event::Recovered);
                }
                ("started", Event::Started)
            }
            Self::Replay(replay) => {
                if replay.response.is_omitted() {
                    counts.count(&op.scope, Event::Omitted);
                }
                counts.duplicate(&op.scope, op.value);
                ("replayed", Event::Replayed)
            }
            Self::InProgress(_) => ("in_progress", Event::InProgress),
            Self::Mismatch(_) => ("mismatch", Event::Mismatch),
            Self::Held(_) => ("held", Event::Held),
        };
        counts.count(&op.scope, event);
        span.record("answer", answer);
    }
}

impl From<Finished> for Event {
    fn from(finished: Finished) -> Self {
        match finished {
            Finished::Completed => Self::Completed,
            Finished::Failed => Self::Failed,
        }
    }
}

/// A stored response and whether it was a success.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replay {
    pub(crate) status: Finished,
    pub(crate) response: Response,
}

/// How a finished operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finished {
    /// With `complete`.
    Completed,
    /// With `fail`: a failure that was meant to be final.
    Failed,
}

impl Finished {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Failed => "failed",
        }
    }

    /// The status of the key's row.
    pub(crate) fn code(self) -> i16 {
        match self {
            Self::Completed => 2,
            Self::Failed => 3,
        }
    }
}

/// Another claim on the key is alive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InProgress {
    pub(crate) lease_remaining: Option<Duration>,
}

/// The key is bound to a request with another fingerprint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    pub(crate) attempt: u32,
}

/// The key waits for an operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub(crate) attempt: u32,
    pub(crate) because: HeldBecause,
}

/// Why a key is [`Held`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeldBecause {
    /// Its lease lapsed and the operation's policy is [`OnLapse::Hold`](crate::OnLapse::Hold).
    Lapsed,
    /// Its lease lapsed and the attempts allowed are used up.
    Attempts,
}

impl Replay {
    /// Whether it was completed or failed.
    #[must_use]
    pub fn status(&self) -> Finished {
        self.status
    }

    /// The stored response.
    #[must_use]
    pub fn response(&self) -> &Response {
        &self.response
    }

    /// The stored response, owned.
    #[must_use]
    pub fn into_response(self) -> Response {
        self.response
    }

    /// Reads the stored body as JSON.
    ///
    /// # Errors
    /// [`Encoding`](crate::ErrorKind::Encoding) when the body was not kept or is not JSON of this type.
    pub fn parse_json<T: DeserializeOwned>(&self) -> Result<T> {
        self.response.parse_json()
    }
}

impl InProgress {
    /// How long the live claim's lease still runs, if it has one: an open transaction has none.
    #[must_use]
    pub fn lease_remaining(&self) -> Option<Duration> {
        self.lease_remaining
    }

    /// When to come back, in whole seconds and at least one: the rest of the lease, or one second
    /// for an open transaction.
    #[must_use]
    pub fn retry_after(&self) -> Duration {
        let seconds = self.lease_remaining.unwrap_or_default().as_millis().div_ceil(1000).max(1);
        Duration::from_secs(u64::try_from(seconds).unwrap_or(u64::MAX))
    }
}

impl Mismatch {
    /// How many claims the key has had.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.attempt
    }
}

impl Held {
    /// How many claims the key has had.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Why the key is held.
    #[must_use]
    pub fn because(&self) -> HeldBecause {
        self.because
    }
}

// What `RunError` has as its source.
impl StdError for InProgress {}
impl StdError for Mismatch {}
impl StdError for Held {}

impl fmt::Display for InProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.lease_remaining {
            Some(_) => "another claim is live",
            None => "another transaction has the key's lock",
        })
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the request's fingerprint is not the one that is stored with the key")
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.because {
            HeldBecause::Lapsed => {
                "the claim lapsed, and the operation is not taken over by itself"
            }
            HeldBecause::Attempts => "the attempts are used up",
        })
    }
}
