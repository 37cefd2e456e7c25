//! How a lease is held.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::limits::{outside, spelled};

/// How long a claim outlives its holder, how often its holder says that it lives, and for how long at most.
///
/// ```
/// use std::time::Duration;
/// use pgonce::Lease;
/// let lease = Lease::new(Duration::from_secs(30))?.heartbeat(Duration::from_secs(5))?;
/// assert!(Lease::new(Duration::ZERO).is_err());
/// assert!(lease.heartbeat(Duration::from_secs(30)).is_err());
/// # Ok::<(), pgonce::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    pub(crate) length: Duration,
    pub(crate) heartbeat: Duration,
    pub(crate) renewed_for: Duration,
}

const LENGTH_MIN: Duration = Duration::from_millis(1);
const RENEWED_FOR_DEFAULT: Duration = Duration::from_secs(24 * 3600);

impl Lease {
    /// A lease of this length, pushed every third of it, for up to 24 hours. A process that dies blocks
    /// its keys for so long; one that is held up for longer may lose them.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for less than 1 ms. Begin refuses one above the
    /// operation's retention.
    pub fn new(length: Duration) -> Result<Self> {
        if length < LENGTH_MIN {
            return Err(outside("lease", &spelled(length), "1 ms up to the retention"));
        }
        Ok(Self { length, heartbeat: length / 3, renewed_for: RENEWED_FOR_DEFAULT })
    }

    /// Pushes the lease at this interval.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for zero, or for an interval that is not shorter
    /// than the lease.
    pub fn heartbeat(mut self, interval: Duration) -> Result<Self> {
        if interval.is_zero() || interval >= self.length {
            return Err(Error::invalid("heartbeat takes more than zero and less than the lease"));
        }
        self.heartbeat = interval;
        Ok(self)
    }

    /// Stops pushing after this time: work that hangs loses its key in the end.
    #[must_use]
    pub fn renewed_for(mut self, ceiling: Duration) -> Self {
        self.renewed_for = ceiling;
        self
    }
}
