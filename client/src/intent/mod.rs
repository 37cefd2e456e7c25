//! Intents: what a client means to do, with the key under which it does it, remembered over a crash.

mod file;
#[cfg(feature = "postgres")]
mod postgres;

use std::fmt;
use std::time::{Duration, SystemTime};

pub use file::FileIntentStore;
#[cfg(feature = "postgres")]
pub use postgres::PgIntentStore;

/// How much the clocks of two machines may differ.
const CLOCKS_DIFFER: Duration = Duration::from_secs(5 * 60);

/// Something to do once, such as *charge order 17*, and its key.
#[derive(Clone, PartialEq, Eq)]
pub struct Intent {
    pub(crate) name: String,
    pub(crate) key: String,
    pub(crate) begun_at: SystemTime,
}

impl Intent {
    /// What the caller named it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The idempotency key, for the request's header. A server by the letter of the IETF draft wants it in quotes:
    /// `format!("\"{}\"", intent.key())`.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// When it was begun first.
    #[must_use]
    pub fn begun_at(&self) -> SystemTime {
        self.begun_at
    }

    /// The intent, if a server that remembers keys for this long still knows its key.
    fn within(self, retention: Duration) -> Result<Self, IntentError> {
        let age = match self.begun_at.elapsed() {
            Ok(age) => age.as_secs_f64(),
            Err(ahead) => -ahead.duration().as_secs_f64(),
        };
        self.aged(age, retention)
    }

    /// The same with the age in seconds. An intent of the future may have any age: the clock was set back.
    fn aged(self, age: f64, retention: Duration) -> Result<Self, IntentError> {
        let is_known = -CLOCKS_DIFFER.as_secs_f64() < age && age < retention.as_secs_f64();
        if is_known { Ok(self) } else { Err(IntentError::TooOld(self)) }
    }
}

// By hand: a key belongs in no log.
impl fmt::Debug for Intent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Intent").field("begun_at", &self.begun_at).finish_non_exhaustive()
    }
}

/// Why an intent could not be begun, finished or listed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IntentError {
    /// The intent is older than the server remembers keys, or its age is not known, because by this clock it was begun in
    /// the future. Under its key the server could act again. Find out by hand whether it took effect; then
    /// [`forget`](IntentStore::forget) it.
    #[error(
        "the intent is older than the server remembers its key; find out whether it took effect, then forget it"
    )]
    TooOld(Intent),
    /// A name that is empty or longer than 255 bytes, or a retention of 0.
    #[error("{0}")]
    Invalid(String),
    /// Another process has the store open.
    #[error("another process has the store open")]
    InUse,
    /// The store could not be read or written. The intent may be begun: begin it again.
    #[error("the store failed: {0}")]
    Store(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl IntentError {
    fn store(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Store(error.into())
    }
}

/// Remembers the key of each intent, so that a process that crashed between sending and reading uses the same key after
/// its restart, and can list what it does not know the outcome of.
///
/// Begin an intent before sending, and finish it when its outcome is known:
///
/// ```no_run
/// # async fn example(client: reqwest_middleware::ClientWithMiddleware) -> Result<(), Box<dyn std::error::Error>> {
/// use pgonce_client::{FileIntentStore, IntentStore};
/// use std::time::Duration;
/// // A little less than the server's retention, which is 24 hours.
/// let intents = FileIntentStore::open("intents.jsonl", Duration::from_secs(23 * 3600))?;
/// let intent = intents.begin("charge order 17").await?;
/// let charge = client.post("https://api.example.com/charges").header("idempotency-key", intent.key());
/// let charge = charge.body(r#"{"cents": 1999}"#).send().await?;
/// if charge.status().is_success() {
///     intents.finish(&intent).await?;
/// }
/// # Ok(())
/// # }
/// ```
pub trait IntentStore: Send + Sync {
    /// The intent of this name, stored before this returns: a new one with a new key, or the one that was begun before,
    /// finished or not, with the key that it had. A name is from 1 to 255 bytes.
    ///
    /// # Errors
    /// [`TooOld`](IntentError::TooOld), [`Invalid`](IntentError::Invalid), [`Store`](IntentError::Store).
    ///
    /// # Cancel safety
    /// If dropped, the intent is begun or not.
    fn begin(&self, name: &str) -> impl Future<Output = Result<Intent, IntentError>> + Send;

    /// Marks the intent's outcome as known. It keeps its name and key. Does nothing if the intent was forgotten, even if
    /// its name was begun again.
    ///
    /// # Errors
    /// [`Store`](IntentError::Store).
    ///
    /// # Cancel safety
    /// If dropped, the intent is finished or not.
    fn finish(&self, intent: &Intent) -> impl Future<Output = Result<(), IntentError>> + Send;

    /// The intents whose outcome is not known, the oldest first. Those older than the retention are among them: nothing
    /// sends them again by itself.
    ///
    /// # Errors
    /// [`Store`](IntentError::Store).
    ///
    /// # Cancel safety
    /// Cancel safe.
    fn unknown(&self) -> impl Future<Output = Result<Vec<Intent>, IntentError>> + Send;

    /// Removes the intent: the next begin of its name gets a new key, and the server acts again. Does nothing if it was
    /// forgotten already.
    ///
    /// # Errors
    /// [`Store`](IntentError::Store).
    ///
    /// # Cancel safety
    /// If dropped, the intent is removed or not.
    fn forget(&self, intent: &Intent) -> impl Future<Output = Result<(), IntentError>> + Send;
}

fn checked(name: &str) -> Result<(), IntentError> {
    match name.len() {
        1..=255 => Ok(()),
        bytes => {
            Err(IntentError::Invalid(format!("the name has {bytes} bytes; it takes 1 to 255")))
        }
    }
}

fn checked_retention(retention: Duration) -> Result<Duration, IntentError> {
    if retention.is_zero() {
        return Err(IntentError::Invalid("the retention is 0; it takes more".to_owned()));
    }
    Ok(retention)
}

fn new_key() -> String {
    uuid::Uuid::new_v4().to_string()
}
