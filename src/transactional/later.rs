//! Work that cannot be done now, and is not to blame for it.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use crate::error::causes;
use crate::transactional::Failure;

/// What is in a [`Failure::later`].
#[derive(Debug)]
pub(crate) struct Later(Duration);

impl Later {
    /// The pause that the work has asked for, if it did.
    pub(crate) fn in_causes(error: &(dyn StdError + 'static)) -> Option<Duration> {
        causes(error).find_map(|error| error.downcast_ref::<Self>()).map(|later| later.0)
    }
}

impl fmt::Display for Later {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the work cannot be done now")
    }
}

impl StdError for Later {}

impl Failure {
    /// Not now: what the work needs is away, and the message or the request is not to blame. Everything is undone and
    /// nothing is kept; the attempt does not count against a cap.
    ///
    /// [`Inbox::handle`](crate::Inbox::handle) answers `Retry` with this pause. [`run`](crate::PgOnce::run) and
    /// [`run_leased`](crate::PgOnce::run_leased) return [`RunError::Work`](crate::RunError::Work), which is retryable;
    /// [`RunError::retry_after`](crate::RunError::retry_after) tells the pause. Steps that are recorded stay. With
    /// [`OnLapse::Hold`](crate::OnLapse::Hold) an operator decides, as after any failure.
    ///
    /// ```
    /// use std::time::Duration;
    /// use pgonce::Failure;
    /// fn ship(is_open: bool) -> Result<(), Failure> {
    ///     if !is_open {
    ///         return Err(Failure::later(Duration::from_secs(60)));
    ///     }
    ///     Ok(())
    /// }
    /// assert!(ship(false).is_err());
    /// ```
    #[must_use]
    pub fn later(pause: Duration) -> Self {
        Self::from(Later(pause))
    }
}
