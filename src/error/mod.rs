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
pub(crate) use redacted::{Decided, OPAQUE, redacted};

/// The result of a pgonce call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong in pgonce or its database.
///
/// Replay, in progress, mismatch and held are answers ([`Begin`](crate::Begin)), not errors. `Display` and `Debug` show
/// no keys, scopes or bodies.
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
    /// An argument (key, scope, duration, ..) is outside its limits, or the database's encoding cannot represent it.
    /// The message names field and limit. Nothing was written. Nothing ran, except a [step](crate::Work::step) whose
    /// output is too large, or the work of an [optimistic](crate::Operation::optimistic) call.
    InvalidInput,
    /// The claim was released, taken over, finished or forgotten, or is in another database; for operators: the key has
    /// changed. Roll back.
    ClaimLost,
    /// Serialization failure or deadlock (40001, 40P01), or another transaction wrote or locked the key's row. Nothing
    /// was written; rerun the whole transaction with the same key.
    Contention,
    /// The connection or the server broke during COMMIT, which may have succeeded. Begin again with the same key to
    /// find out.
    CommitUnknown,
    /// A deferred constraint or trigger refused the work's COMMIT. Nothing was committed. Not retryable: fix the work.
    CommitRefused,
    /// The work ended pgonce's transaction, or left a nested one open. The message says whether the work's writes may
    /// be committed. Not retryable: fix the work.
    TransactionLost,
    /// The database could not be reached, hung up (also on an idle session) or gave no answer in time, or no connection
    /// came free in time.
    Connection,
    /// The database takes no writes: a replica, or a read-only transaction.
    ReadOnly,
    /// The schema is missing or older than this library: run `migrate`. If `migrate` returns this, the message says
    /// why.
    SchemaOutdated,
    /// A newer library migrated the schema; this library would damage it.
    SchemaTooNew,
    /// A pooler, a session default or the database's encoding breaks pgonce's promises, or the audit trail is on and
    /// incomplete. The message names problem and cure. Only [`PgOnce::check`](crate::PgOnce::check) returns this.
    Environment,
    /// A stored row has a value that pgonce never writes, or something hides the row. The operation is neither replayed
    /// nor run again.
    Corrupt,
    /// A step of leased work does not fit the records: it is new but comes before recorded steps that this attempt has
    /// not reached (was one renamed or left out?), repeats a name, or its input or type has changed. It did not run.
    StepChanged,
    /// A value could not be written as JSON or read back from it, or something stored is not of the wanted type.
    Encoding,
    /// The operation is done, but its stored response is not of the type that `run` or `run_leased` should return.
    ReplayUnreadable,
    /// The work ignored a database error and went on. PostgreSQL then accepts only a rollback: nothing was committed.
    /// Not retryable: fix the work, or set a savepoint before a statement that may fail.
    TransactionAborted,
    /// Any other answer of the database; see [`Error::sqlstate`].
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

    /// Adds the schema's name to an error about missing objects or rights.
    pub(crate) fn in_schema(mut self, schema: &SchemaName) -> Self {
        if self.kind == ErrorKind::SchemaOutdated || sqlstate_in(&self) == Some("42501") {
            self.message.push_str(&format!("; pgonce's schema here is {}", schema.as_str()));
        }
        self
    }

    pub(crate) fn of_kind(self, kind: ErrorKind) -> Self {
        Self { kind, ..self }
    }

    /// Adds how the work had failed before.
    pub(crate) fn after(mut self, failed: &str) -> Self {
        self.message.push_str(&format!("; before that, the work had failed: {failed}"));
        self
    }

    /// Adds that nothing was committed, when the connection was lost before COMMIT.
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

    /// Whether the connection broke after the statement may have been sent, so that it may have taken effect.
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

    /// Whether the same call with the same key may succeed later. The SQLSTATE decides, never the message text.
    /// Retryable: serialization failures, deadlocks, lock timeouts, lost connections, an unknown COMMIT, and a server
    /// that shuts down, is read-only or has run out of something (class 53).
    ///
    /// Not retryable, because they fail the same way again: ignored errors, constraints that refuse the COMMIT, missing
    /// rights, poolers that lose prepared statements, and a transaction that has itself filled the server's lock table.
    /// Nor is a lost claim: the caller of a verb must roll back. For a whole run see
    /// [`RunError::is_retryable`](crate::RunError::is_retryable).
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.kind.is_retryable(sqlstate_in(self))
    }
}

// Lets arguments be a `Key`, or text that becomes one.
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

// By hand: a derived one would print the driver's error with its DETAIL, which can quote a row.
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
