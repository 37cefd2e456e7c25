//! When a call is tried again, and for how long.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{HeaderName, Method};

use crate::Error;

/// How calls are keyed and tried again. Clones share the budget.
///
/// ```
/// use pgonce_client::RetryPolicy;
/// use std::time::Duration;
/// let policy = RetryPolicy::new().deadline(Duration::from_secs(30))?.tries_max(5)?;
/// # drop(policy);
/// # Ok::<(), pgonce_client::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct RetryPolicy {
    pub(crate) header: HeaderName,
    pub(crate) quoted: bool,
    pub(crate) methods: Vec<Method>,
    pub(crate) correlation: Option<HeaderName>,
    pub(crate) deadline: Duration,
    pub(crate) try_deadline: Duration,
    pub(crate) tries_max: u32,
    pub(crate) pause: Duration,
    pub(crate) pause_max: Duration,
    pub(crate) budget: Budget,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self::new()
    }
}

impl RetryPolicy {
    /// Keys in the header `Idempotency-Key` for POST and PATCH; up to ten tries within one minute, each of
    /// 15 seconds; pauses of up to 0.2,
    /// 0.4, 0.8 .. 20 seconds, by chance; a [`Budget`] of 100 retries.
    #[must_use]
    pub fn new() -> Self {
        Self {
            header: HeaderName::from_static("idempotency-key"),
            quoted: false,
            methods: vec![Method::POST, Method::PATCH],
            correlation: None,
            deadline: Duration::from_secs(60),
            try_deadline: Duration::from_secs(15),
            tries_max: 10,
            pause: Duration::from_millis(200),
            pause_max: Duration::from_secs(20),
            budget: Budget::new(100),
        }
    }

    /// The header of the key, such as `X-Request-Id`.
    #[must_use]
    pub fn header(mut self, name: HeaderName) -> Self {
        self.header = name;
        self
    }

    /// Writes keys as strings in quotes, as the
    /// [IETF draft](https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/07/) has them. pgonce's
    /// server takes both forms for the same key; for most others `"abc"` and `abc` are two.
    #[must_use]
    pub fn quoted(mut self) -> Self {
        self.quoted = true;
        self
    }

    /// The methods that get a key. Without a key, GET, HEAD, OPTIONS, PUT and DELETE are tried again too, because they
    /// may be repeated by definition (RFC 9110, section 9.2.2); others are sent once.
    #[must_use]
    pub fn methods(mut self, methods: impl IntoIterator<Item = Method>) -> Self {
        self.methods = methods.into_iter().collect();
        self
    }

    /// Sends an id in this header, the same in all tries of a call, so that the servers' logs can be joined. An id that
    /// the request has is kept.
    #[must_use]
    pub fn correlation(mut self, name: HeaderName) -> Self {
        self.correlation = Some(name);
        self
    }

    /// The longest time of a call, with all tries and pauses: from 1 ms to 1 day. No try begins after it, and one that
    /// runs is dropped.
    ///
    /// # Errors
    /// [`Error::Invalid`].
    pub fn deadline(mut self, deadline: Duration) -> Result<Self, Error> {
        self.deadline = between("deadline", deadline, Duration::from_secs(86_400))?;
        Ok(self)
    }

    /// The longest time of one try, from 1 ms to 1 day. After it the connection counts as broken: many answers are lost
    /// without a word. A call that waits for slow answers, such as pgonce's with a long `wait`, needs a longer time.
    ///
    /// # Errors
    /// [`Error::Invalid`].
    pub fn try_deadline(mut self, deadline: Duration) -> Result<Self, Error> {
        self.try_deadline = between("try_deadline", deadline, Duration::from_secs(86_400))?;
        Ok(self)
    }

    /// How often a request is sent, from 1 to 100.
    ///
    /// # Errors
    /// [`Error::Invalid`].
    pub fn tries_max(mut self, tries: u32) -> Result<Self, Error> {
        if !(1..=100).contains(&tries) {
            return Err(Error::Invalid(format!("tries_max is {tries}; it takes 1 to 100")));
        }
        self.tries_max = tries;
        Ok(self)
    }

    /// The longest first pause, from 1 ms to 1 hour, and the longest of all. Each pause is a random part of a limit that
    /// doubles (*full jitter*, <https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/>). The server's
    /// `Retry-After` comes on top.
    ///
    /// # Errors
    /// [`Error::Invalid`].
    pub fn pause(mut self, first: Duration, longest: Duration) -> Result<Self, Error> {
        const HOUR: Duration = Duration::from_secs(3600);
        self.pause = between("pause, the first,", first, HOUR)?;
        self.pause_max = between("pause, the longest,", longest, HOUR)?.max(first);
        Ok(self)
    }

    /// A budget to share with other policies.
    #[must_use]
    pub fn budget(mut self, budget: Budget) -> Self {
        self.budget = budget;
        self
    }

    /// A random part of the limit of the pause before the try after this one.
    pub(crate) fn jitter(&self, tries: u32) -> Duration {
        let doubled = self.pause.saturating_mul(1 << tries.saturating_sub(1).min(20));
        doubled.min(self.pause_max).mul_f64(fastrand::f64())
    }
}

fn between(what: &str, value: Duration, most: Duration) -> Result<Duration, Error> {
    if value < Duration::from_millis(1) || value > most {
        return Err(Error::Invalid(format!("{what} is {value:?}; it takes 1 ms to {most:?}")));
    }
    Ok(value)
}

/// How many retries all calls together may have open. When a server is down, each of its callers would multiply its load
/// by retrying; this bounds it. A retry takes one, and gets it back when its call ends with an answer. Calls that fail
/// for good, or are dropped, do not give back; each call that needs no retry gives back a tenth.
///
/// ```
/// use pgonce_client::{Budget, RetryPolicy};
/// let budget = Budget::new(500); // of all clients of this process
/// let policy = RetryPolicy::new().budget(budget.clone());
/// # drop(policy);
/// ```
#[derive(Debug, Clone)]
pub struct Budget {
    left: Arc<Mutex<f64>>,
    most: f64,
}

impl Budget {
    /// This many retries at most. Zero: no call is tried again.
    #[must_use]
    pub fn new(retries: u32) -> Self {
        let most = f64::from(retries);
        Self { left: Arc::new(Mutex::new(most)), most }
    }

    pub(crate) fn take(&self) -> bool {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let there = *left >= 1.0;
        if there {
            *left -= 1.0;
        }
        there
    }

    pub(crate) fn give_back(&self, retries: u32) {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let back = if retries == 0 { 0.1 } else { f64::from(retries) };
        *left = (*left + back).min(self.most);
    }
}
