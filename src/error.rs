//! One opaque error: branch on [`Error::kind`], retry on [`Error::is_retryable`].

use std::convert::Infallible;
use std::error::Error as StdError;
use std::fmt;

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
    /// A key, scope, duration or other argument is outside its limits. The message names the field
    /// and the limit. Nothing was written, and nothing ran but a [step](crate::Work::step) whose output is
    /// too large.
    InvalidInput,
    /// The claim was released, taken over, finished or forgotten. The caller must roll back.
    ClaimLost,
    /// The database gave up this transaction for another one (40001 or 40P01). Nothing was written;
    /// run the whole transaction again with the same key.
    Contention,
    /// The connection broke while COMMIT was on its way: the transaction may or may not be there.
    /// Beginning again with the same key finds out.
    CommitUnknown,
    /// The work given to `run` ended or left open a transaction that was not its own to end. The
    /// message says whether anything it wrote may be committed. Not retryable: look at the work's code.
    TransactionLost,
    /// The database could not be reached, hung up, or no connection came free in time.
    Connection,
    /// The database takes no writes: a replica, or a read-only transaction.
    ReadOnly,
    /// The schema is missing or older than this library. Run `migrate`.
    SchemaOutdated,
    /// The schema was migrated by a newer library, which this one would damage.
    SchemaTooNew,
    /// A stored row holds what pgonce never writes. It is neither replayed nor run again.
    Corrupt,
    /// A step of leased work does not fit what is recorded: it is new and comes before recorded ones that have not
    /// been come by (was one renamed or left out?), has the name of another one, is made from something
    /// else, or has another type. Nothing of it was done.
    StepChanged,
    /// A value could not be turned into a response, or a stored response not into the wanted type.
    Encoding,
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
        Self { kind, message: message.into(), source: Some(source.into()) }
    }

    pub(crate) fn caused_by(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
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
    /// deadlocks, lock time-outs, lost connections, a server that shuts down or is read-only,
    /// and an unknown COMMIT. Decided by SQLSTATE, never by message text. Not a lost claim, after which
    /// the caller of a verb must roll back; for a whole run ask
    /// [`RunError::is_retryable`](crate::RunError::is_retryable).
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.kind.is_retryable(sqlstate_in(self))
    }
}

impl ErrorKind {
    fn is_retryable(self, sqlstate: Option<&str>) -> bool {
        match self {
            Self::Contention | Self::CommitUnknown | Self::Connection | Self::ReadOnly => true,
            // Lock not available; idle in transaction too long: both end with the transaction.
            Self::Database => matches!(sqlstate, Some("55P03" | "25P03")),
            _ => false,
        }
    }

    fn of(error: &sqlx::Error) -> Self {
        let Some(database) = error.as_database_error() else {
            return match error {
                sqlx::Error::Io(_)
                | sqlx::Error::Tls(_)
                | sqlx::Error::Protocol(_)
                | sqlx::Error::PoolTimedOut
                | sqlx::Error::PoolClosed
                | sqlx::Error::WorkerCrashed => Self::Connection,
                _ => Self::Database,
            };
        };
        match database.code().unwrap_or_default().as_ref() {
            // Somebody has written the key's row without its lock, after begin had seen none.
            "23505" if database.constraint() == Some("idempotency_keys_pkey") => Self::Contention,
            code => Self::of_code(code),
        }
    }

    fn of_code(sqlstate: &str) -> Self {
        match sqlstate {
            // NUL bytes and bad UTF-8 in a scope or key.
            "IK001" | "22021" => Self::InvalidInput,
            "IK002" => Self::ClaimLost,
            "IK003" => Self::Corrupt,
            "IK005" => Self::SchemaOutdated,
            // A procedure inside a transaction.
            "2D000" => Self::InvalidInput,
            "40001" | "40P01" => Self::Contention,
            // No such savepoint: COMMIT meant one that a leaked nested transaction had made. No transaction: the
            // work has sent a COMMIT or ROLLBACK of its own.
            "3B001" | "25P01" => Self::TransactionLost,
            "25006" => Self::ReadOnly,
            // No such schema, table or function.
            "3F000" | "42P01" | "42883" => Self::SchemaOutdated,
            "53300" | "57P01" | "57P02" | "57P03" | "57P05" => Self::Connection,
            code if code.starts_with("08") => Self::Connection,
            _ => Self::Database,
        }
    }
}

/// Wraps an error of one of pgonce's own statements.
pub(crate) fn database(error: sqlx::Error) -> Error {
    let kind = ErrorKind::of(&error);
    let message = match (kind, error.as_database_error()) {
        // Raised by our own functions: the message names field and limit, never a value.
        (_, Some(raised)) if raised.code().is_some_and(|code| code.starts_with("IK")) => {
            raised.message().to_owned()
        }
        (_, Some(raised)) if raised.code().as_deref() == Some("2D000") => {
            "a transaction is open on this connection; this call commits by itself".to_owned()
        }
        (ErrorKind::InvalidInput, _) => "scope or key is not valid UTF-8 without NUL".to_owned(),
        (ErrorKind::Contention, _) => {
            "the database gave up this transaction for another one; run it again".to_owned()
        }
        (ErrorKind::TransactionLost, _) => {
            "the work ended or left open a transaction that was not its own".to_owned()
        }
        (ErrorKind::ReadOnly, _) => {
            "the database is read-only; pgonce needs the primary".to_owned()
        }
        (ErrorKind::SchemaOutdated, _) => {
            "pgonce's schema is missing or outdated; run migrate".to_owned()
        }
        (ErrorKind::Connection, _) if matches!(error, sqlx::Error::PoolTimedOut) => {
            "no connection came free in time".to_owned()
        }
        (ErrorKind::Connection, _) => "the database could not be reached or hung up".to_owned(),
        (_, Some(raised)) if matches!(raised.code().as_deref(), Some("42P05" | "26000")) => {
            "a pooler loses prepared statements; it must keep track of them".to_owned()
        }
        (_, Some(raised)) => {
            format!("the database refused (SQLSTATE {})", raised.code().unwrap_or_default())
        }
        (_, None) => "the database driver failed".to_owned(),
    };
    Error::with_source(kind, message, error)
}

/// Wraps an error of COMMIT. An ERROR from the server means rolled back; anything that cuts the
/// conversation short (a FATAL, a lost connection, also as a proxy reports it) leaves the outcome open.
pub(crate) fn commit(error: sqlx::Error) -> Error {
    use sqlx::postgres::{PgDatabaseError, PgSeverity};
    let refused = error
        .as_database_error()
        .and_then(|error| error.try_downcast_ref::<PgDatabaseError>())
        .is_some_and(|error| {
            // 08: connection exception; 40003: statement completion unknown.
            let unknown = error.code().starts_with("08") || error.code() == "40003";
            error.severity() == PgSeverity::Error && !unknown
        });
    if refused {
        return database(error);
    }
    Error::with_source(
        ErrorKind::CommitUnknown,
        "the connection broke during COMMIT; begin again with the same key to find out",
        error,
    )
}

/// The SQLSTATE in a chain of sources, if the database sent one.
pub(crate) fn sqlstate_in<'e>(error: &'e (dyn StdError + 'static)) -> Option<&'e str> {
    use sqlx::postgres::PgDatabaseError;
    let mut next = Some(error);
    while let Some(error) = next {
        let raised = match error.downcast_ref::<sqlx::Error>() {
            Some(driver) => driver.as_database_error().and_then(|e| e.try_downcast_ref()),
            // What is left of a driver's error in an `anyhow::Error`, which hides the outermost type.
            None => error.downcast_ref::<PgDatabaseError>().or_else(|| {
                let boxed = error.downcast_ref::<Box<dyn sqlx::error::DatabaseError>>();
                boxed.and_then(|e| e.try_downcast_ref())
            }),
        };
        if let Some(raised) = raised {
            return Some(raised.code());
        }
        next = error.source();
    }
    None
}

/// Whether somebody else's error has a cause in the database that may pass.
pub(crate) fn is_retryable(error: &(dyn StdError + 'static)) -> bool {
    match sqlstate_in(error) {
        Some(code) => ErrorKind::of_code(code).is_retryable(Some(code)),
        None => is_disconnection(error),
    }
}

/// Whether a connection broke, or was not to be had. An `anyhow::Error` hides the driver's error and
/// shows only the I/O error in it; a work's other I/O errors are none of ours.
fn is_disconnection(error: &(dyn StdError + 'static)) -> bool {
    use std::io::ErrorKind as Io;
    let mut next = Some(error);
    while let Some(error) = next {
        let kind = error.downcast_ref::<sqlx::Error>().map(ErrorKind::of);
        let broken = error.downcast_ref::<std::io::Error>().is_some_and(|error| {
            matches!(
                error.kind(),
                Io::BrokenPipe
                    | Io::ConnectionAborted
                    | Io::ConnectionRefused
                    | Io::ConnectionReset
                    | Io::NotConnected
                    | Io::TimedOut
                    | Io::UnexpectedEof
            )
        });
        if kind == Some(ErrorKind::Connection) || broken {
            return true;
        }
        next = error.source();
    }
    false
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
