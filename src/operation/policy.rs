//! How long a key is remembered, waited for and tried again.

use std::time::Duration;

use super::limits::{self, outside, spelled};
use crate::error::Result;

/// How long a key is remembered, how long a caller waits for another one, and what happens to a claim whose holder is
/// gone.
///
/// A plain value: make it once, at start-up, where a bad number is refused. A [client](crate::PgOnce::policy) takes it
/// for all its operations; an [operation](crate::Operation::policy), an [inbox](crate::Inbox::policy) or an HTTP layer
/// takes one instead.
///
/// ```
/// use std::time::Duration;
/// use pgonce::{Operation, PgOnce, Policy};
///
/// let policy = Policy::new().retention(Duration::from_secs(7 * 86_400))?.max_attempts(10)?;
/// let once = PgOnce::new().policy(policy);
/// // One operation waits for its duplicates, too.
/// let op = Operation::new("acme/payments.create", "order-17")?.policy(policy.wait(Duration::from_secs(2))?);
/// assert!(policy.wait(Duration::from_secs(3601)).is_err());
/// # Ok::<(), pgonce::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    pub(crate) retention: Duration,
    pub(crate) failed_retention: Option<Duration>,
    pub(crate) wait: Duration,
    pub(crate) on_lapse: OnLapse,
    pub(crate) max_attempts: Option<u32>,
}

/// What begin does with a claim whose lease has lapsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnLapse {
    /// Take it over with a new token.
    #[default]
    Retry,
    /// Answer [`Held`](crate::Begin::Held): an operator decides.
    Hold,
}

impl OnLapse {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Hold => "hold",
        }
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self::new()
    }
}

impl Policy {
    /// Retention 24 hours, no wait, lapsed claims taken over, any number of attempts.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            retention: Duration::from_secs(24 * 3600),
            failed_retention: None,
            wait: Duration::ZERO,
            on_lapse: OnLapse::Retry,
            max_attempts: None,
        }
    }

    /// The policy of an [inbox](crate::Inbox) unless it is given another: retention seven days, a wait of one second,
    /// ten attempts.
    #[must_use]
    pub const fn inbox() -> Self {
        Self {
            retention: Duration::from_secs(7 * 86_400),
            wait: Duration::from_secs(1),
            max_attempts: Some(10),
            ..Self::new()
        }
    }

    /// How long a key is remembered, counted from its first begin: 1 ms to ten years. It must outlast the last retry of
    /// any client. After it the same key runs again.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) outside these limits.
    pub fn retention(mut self, retention: Duration) -> Result<Self> {
        limits::check_retention("retention", retention)?;
        self.retention = retention;
        Ok(self)
    }

    /// How long a kept failure is remembered: 1 ms to ten years from when it is kept, but not beyond the key's retention.
    /// By default as long as the key. After this time the same key runs again: a customer whose card was declined can
    /// pay for the same order.
    ///
    /// Leased work that has recorded [steps](crate::Work::step) keeps the key's retention, because it would repeat them.
    /// A remote gets the same [derived key](crate::Operation::derived_key) again: set this above the time for which the
    /// remote remembers keys.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) outside these limits.
    pub fn failed_retention(mut self, retention: Duration) -> Result<Self> {
        limits::check_retention("failed_retention", retention)?;
        self.failed_retention = Some(retention);
        Ok(self)
    }

    /// How long to wait when another caller works on the same key: zero (answer *in progress* at once) to one hour.
    ///
    /// The verbs wait for another open transaction, on the caller's connection. `run` and HTTP routes also wait out a
    /// leased claim, without holding a connection. Of their calls that wait with the same request, through clones of one
    /// [`PgOnce`](crate::PgOnce) and on one pool, at most one waits in the database; the others connect only to look. An
    /// inbox holds a connection while it waits.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) above the limit.
    pub fn wait(mut self, bound: Duration) -> Result<Self> {
        if bound > WAIT_MAX {
            return Err(outside("wait", &spelled(bound), "up to 1 h"));
        }
        self.wait = bound;
        Ok(self)
    }

    /// What to do with a lapsed lease.
    #[must_use]
    pub fn on_lapse(mut self, on_lapse: OnLapse) -> Self {
        self.on_lapse = on_lapse;
        self
    }

    /// After this many claims, at least one, a lapsed key is [`Held`](crate::Begin::Held) instead of taken over, and a
    /// message is dead.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for zero.
    pub fn max_attempts(mut self, attempts: u32) -> Result<Self> {
        if attempts == 0 {
            return Err(outside("max_attempts", "0", "at least 1"));
        }
        self.max_attempts = Some(attempts);
        Ok(self)
    }
}

const WAIT_MAX: Duration = Duration::from_secs(3600);
