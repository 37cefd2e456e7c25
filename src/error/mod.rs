//! One opaque error: branch on [`Error::kind`], retry on [`Error::is_retryable`].

mod classify;
mod encoding;
mod redacted;

use std::convert::Infallible;
use std::error::Error as StdError;
use std::fmt;

use crate::protocol::schema::SchemaName;

pub(crate) use classify::{
    causes, commit, database, is_retryable, of_claim, of_claims_call, sqlstate_in,
};
pub(crate) use encoding::cannot_hold;
pub(crate) use redacted::{OPAQUE, redacted};

/// The result of a pgonce call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong in pgonce or in the database under it.
///
/// Replay, in progress, mismatch and held are answers ([`Begin`](crate::Begin)), not errors.
/// Neither `Display` nor `Debug` shows keys, scopes or bodies.
///
/// ```
/// let error = pgonce::Key::new("").unwrap_err();
/// assert_eq!(error.kind(), pgonce::ErrorKind::InvalidInput);
/// assert_eq!(error.to_string(), "key is empty; it takes 1 to 255 bytes");
/// assert!(!error.is_retryable());
/// ```
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// What an [`Error`] is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A key, scope, duration or other argument is outside its limits, or the database's encoding cannot hold it. The
    /// message names the field and the limit. Nothing was written, and nothing ran but a [step](crate::Work::step) whose output is
    /// too large.
    InvalidInput,
    /// The claim was released, taken over, finished or forgotten, or it is in another database. The caller must roll
    /// back.
    ClaimLost,
    /// The database gave up this transaction for another one (40001 or 40P01). Nothing was written;
    /// run the whole transaction again with the same key.
    Contention,
    /// The connection or the server broke while COMMIT was on its way: the transaction may or may not be there.
    /// Beginning again with the same key finds out.
    CommitUnknown,
    /// A deferred constraint or trigger of the work's refused the COMMIT. Nothing was committed. Not retryable: look at
    /// the work's code.
    CommitRefused,
    /// The work given to `run` ended or left open a transaction that was not its own to end. The
    /// message says whether anything it wrote may be committed. Not retryable: look at the work's code.
    TransactionLost,
    /// The database could not be reached, hung up (also because the session was idle for too long), or no connection
    /// came free in time.
    Connection,
    /// The database takes no writes: a replica, or a read-only transaction.
    ReadOnly,
    /// The schema is missing or older than this library. Run `migrate`.
    SchemaOutdated,
    /// The schema was migrated by a newer library, which this one would damage.
    SchemaTooNew,
    /// A pooler, or a default of the session, with which pgonce cannot keep its promises. The message names it and the
    /// cure. Only [`PgOnce::check`](crate::PgOnce::check) says this.
    Environment,
    /// A stored row holds what pgonce never writes. It is neither replayed nor run again.
    Corrupt,
    /// A step of leased work does not fit what is recorded: it is new and comes before recorded steps that this attempt
    /// has not reached (was one renamed or left out?), has the name of another step, is made from another input, or has
    /// another type. It was not done.
    StepChanged,
    /// A value could not be turned into a response, or a stored response not into the wanted type.
    Encoding,
    /// An error inside the work was swallowed: the work went on after a statement that had failed. PostgreSQL takes
    /// nothing but a rollback then, so nothing was committed. Not retryable: look at the work's code, or set a
    /// savepoint before a statement that may fail.
    TransactionAborted,
    /// Any other answer of the database; [`Error::sqlstate`] says which.
    Database,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    pub(crate) fn with_source(
        kind: ErrorKind,
        message: impl Into<String>,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Self { source: Some(source.into()), ..Self::new(kind, message) }
    }

    /// Says in which schema what is missing was looked for.
    pub(crate) fn in_schema(mut self, schema: &SchemaName) -> Self {
        if self.kind == ErrorKind::SchemaOutdated || sqlstate_in(&self) == Some("42501") {
            self.message.push_str(&format!("; pgonce's schema here is {}", schema.as_str()));
        }
        self
    }

    /// Says how the work had failed before this.
    pub(crate) fn after(mut self, failed: &str) -> Self {
        self.message.push_str(&format!("; before that, the work had failed: {failed}"));
        self
    }

    /// Says of an error before COMMIT what a lost connection leaves open otherwise.
    pub(crate) fn before_commit(mut self) -> Self {
        const COMMITTED: &str = "nothing was committed";
        if self.kind == ErrorKind::Connection && !self.message.contains(COMMITTED) {
            self.message.push_str("; ");
            self.message.push_str(COMMITTED);
        }
        self
    }

    /// Whether a key broke its limits.
    #[cfg(feature = "axum")]
    pub(crate) fn is_of_key(&self) -> bool {
        self.kind == ErrorKind::InvalidInput && self.message.starts_with("key ")
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidInput, message)
    }

    /// Whether the connection broke after the statement was sent, so that it may have taken effect.
    pub(crate) fn lost_answer(&self) -> bool {
        let driver = self.source.as_deref().and_then(|source| source.downcast_ref::<sqlx::Error>());
        let unsent = matches!(driver, Some(sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed));
        self.kind == ErrorKind::Connection && !unsent
    }

    /// What this error is about.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The SQLSTATE of the database's answer, if the database answered.
    #[must_use]
    pub fn sqlstate(&self) -> Option<String> {
        sqlstate_in(self).map(str::to_owned)
    }

    /// Whether the same call with the same key may succeed later: serialization failures,
    /// deadlocks, lock time-outs, lost connections, a server that shuts down, is read-only or has run out of
    /// something (class 53), and an unknown COMMIT. Decided by SQLSTATE, never by message text. Not retryable is what
    /// fails the same way again: a swallowed error, a constraint that refuses the COMMIT, a missing right, a pooler
    /// that loses prepared statements, and a transaction that has itself filled the server's lock table. Nor is a lost
    /// claim, after which the caller of a verb must roll back; for a whole run ask
    /// [`RunError::is_retryable`](crate::RunError::is_retryable).
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.kind.is_retryable(sqlstate_in(self))
    }
}

// So that a `Key` is as good an argument as text that becomes one.
impl From<Infallible> for Error {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

// By hand: the derived one would print the driver's error with its DETAIL, which can quote a row.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.kind)
            .field("message", &self.message)
            .field("sqlstate", &sqlstate_in(self))
            .finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}
