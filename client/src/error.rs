//! The errors of a call.

use std::time::Duration;

/// Why a call has no answer, or was not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting is outside its limits. Names the setting, its value and its limits.
    #[error("{0}")]
    Invalid(String),
    /// The body is a stream, which cannot be sent again. Nothing was sent. Give the body as bytes.
    #[error(
        "the request's body cannot be sent again; nothing was sent. Give the body as bytes, not as a stream"
    )]
    BodyNotRepeatable,
    /// The time of the call, or of its last try, is over without an answer. Whether the request took effect is unknown:
    /// send it again under the same key. To know the key then, give it to the request yourself, or take it from an
    /// [`IntentStore`](crate::IntentStore).
    #[error(
        "no answer within {deadline:?}, after {tries} tries. Whether the request took effect is unknown: send it \
         again under the same key"
    )]
    Deadline {
        /// The time that the call had, or its last try.
        deadline: Duration,
        /// How often the request was sent.
        tries: u32,
    },
}
