//! The lease of a claim.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::operation::limits::{SHORTEST, outside, spelled};

/// How long a claim outlives its holder, how often it is renewed, and for how long at most.
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
    /// None: the default of `run_leased` or the route.
    pub(crate) renewed_for: Option<Duration>,
    pub(crate) silent_for: Duration,
}

const SILENT_FOR_MAX: Duration = Duration::from_secs(315_576_000);

impl Lease {
    /// A lease of this length, renewed every third of it. A process that dies blocks its keys for this long; a process
    /// that pauses for longer may lose its claims.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for less than 1 ms. Begin refuses more than the operation's
    /// retention.
    pub fn new(length: Duration) -> Result<Self> {
        if length < SHORTEST {
            return Err(outside("lease", &spelled(length), "1 ms up to the retention"));
        }
        let silent_for = length.saturating_mul(10);
        Ok(Self { length, heartbeat: length / 3, renewed_for: None, silent_for })
    }

    /// Renews the lease at this interval.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) unless the interval is above zero and shorter than the lease.
    pub fn heartbeat(mut self, interval: Duration) -> Result<Self> {
        if interval.is_zero() || interval >= self.length {
            return Err(Error::invalid("heartbeat takes more than zero and less than the lease"));
        }
        self.heartbeat = interval;
        Ok(self)
    }

    /// Stops renewing after this time, so that work that hangs loses its key. Default: 24 hours; on an HTTP route ten
    /// minutes.
    #[must_use]
    pub fn renewed_for(mut self, ceiling: Duration) -> Self {
        self.renewed_for = Some(ceiling);
        self
    }

    /// How long the work may have a connection on loan. Default: ten times the lease. Then the work is stopped, and its
    /// lease no longer renewed: the network may have dropped a statement silently. Work without a loan may take any
    /// time.
    ///
    /// pgonce does not see what the work sends. The time counts from the loan: for [`step_tx`](crate::Work::step_tx)
    /// from its start, for [`last_tx`](crate::Work::last_tx) from its latest call, for a leased route's transaction
    /// from its latest use. Set it above the longest such time.
    ///
    /// pgonce's own calls for the claim also end after this time, at most 60 s.
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
