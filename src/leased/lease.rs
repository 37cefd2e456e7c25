//! How a lease is held.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::operation::limits::{SHORTEST, outside, spelled};

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
    /// None: the default of the way to run.
    pub(crate) renewed_for: Option<Duration>,
    pub(crate) silent_for: Duration,
}

const SILENT_FOR_MAX: Duration = Duration::from_secs(315_576_000);

impl Lease {
    /// A lease of this length, pushed every third of it. A process that dies blocks its keys for so long; one that is
    /// held up for longer may lose them.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for less than 1 ms. Begin refuses one above the
    /// operation's retention.
    pub fn new(length: Duration) -> Result<Self> {
        if length < SHORTEST {
            return Err(outside("lease", &spelled(length), "1 ms up to the retention"));
        }
        let silent_for = length.saturating_mul(10);
        Ok(Self { length, heartbeat: length / 3, renewed_for: None, silent_for })
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

    /// Stops pushing after this time: work that hangs loses its key in the end. 24 hours unless set, and ten minutes on
    /// an HTTP route.
    #[must_use]
    pub fn renewed_for(mut self, ceiling: Duration) -> Self {
        self.renewed_for = Some(ceiling);
        self
    }

    /// How long a connection that was lent to the work may be silent; ten times the lease unless set. Work that has one
    /// for longer is stopped, and its lease is pushed no longer: a statement may have gone into a black hole, on a
    /// network path that drops packets and says nothing. Work that has none on loan may take as long as it likes.
    ///
    /// What the work sends is not seen from here, so the time counts from when the connection was handed out: for
    /// [`step_tx`](crate::Work::step_tx) from its beginning, for [`last_tx`](crate::Work::last_tx) from the latest call
    /// of it, and for the transaction of a leased route from the latest use of it. Set it above the longest such time.
    ///
    /// Calls of pgonce for the claim are given up after this time, too, or after 60 s if that is less.
    ///
    /// ```
    /// use std::time::Duration;
    /// use pgonce::Lease;
    /// let lease = Lease::new(Duration::from_secs(30))?;
    /// assert!(lease.silent_for(Duration::from_secs(3600)).is_ok());
    /// assert!(lease.silent_for(Duration::from_secs(29)).is_err());
    /// # Ok::<(), pgonce::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for less than the lease or more than ten years.
    pub fn silent_for(mut self, longest: Duration) -> Result<Self> {
        if longest < self.length || longest > SILENT_FOR_MAX {
            let takes = format!("the lease, {}, up to 10 years", spelled(self.length));
            return Err(outside("silent_for", &spelled(longest), &takes));
        }
        self.silent_for = longest;
        Ok(self)
    }
}
