//! Work that cannot be done now, through no fault of its own.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use crate::error::causes;
use crate::transactional::Failure;

/// The error of [`Failure::later`].
#[derive(Debug)]
pub(crate) struct Later(Duration);

impl Later {
    /// The pause that the work asked for, if any.
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
    /// Postpones the work: something that it needs is away, and the message or request is not to blame. Everything is
    /// undone, nothing is kept, and no attempt counts toward a cap.
    ///
    /// [`Inbox::handle`](crate::Inbox::handle) answers `Retry` with this pause. [`run`](crate::PgOnce::run) and
    /// [`run_leased`](crate::PgOnce::run_leased) return [`RunError::Work`](crate::RunError::Work), which is retryable;
    /// [`RunError::retry_after`](crate::RunError::retry_after) gives the pause. Recorded steps stay. Under
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
