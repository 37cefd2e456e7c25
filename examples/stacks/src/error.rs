//! The error of a payment, and what each library says about an error of the database.

use std::error::Error;
use std::io::{self, ErrorKind};

use deadpool_postgres::PoolError;
use diesel::ConnectionError;
use diesel::result::DatabaseErrorKind::{
    ClosedConnection, SerializationFailure, UnableToSendCommand, Unknown,
};
use diesel::result::Error as DieselError;
use diesel_async::pooled_connection::PoolError as DieselPoolError;
use diesel_async::pooled_connection::bb8::RunError;
use sea_orm::{ConnAcquireErr, DbErr, RuntimeErr, SqlxError, TransactionError};
use tokio::task::JoinError;

/// Why there is no payment.
#[derive(Debug, thiserror::Error)]
pub enum PayError {
    /// The request is refused, and nothing was sent.
    #[error("`{field}` is {value}, but must be at least {min}")]
    Invalid {
        /// The field of the request.
        field: &'static str,
        /// What it is.
        value: i64,
        /// The least that it may be.
        min: i64,
    },
    /// Final: stored with the key, and every retry gets it.
    #[error("declined: {0}")]
    Declined(String),
    /// Not stored: a retry tries again.
    #[error("no such customer")]
    NoCustomer,
    /// Another call with this key is in progress.
    #[error("another call with this key is in progress")]
    InProgress,
    /// The key belongs to another request.
    #[error("the key belongs to another request")]
    Mismatch,
    /// No call may continue until an operator decides.
    #[error("no call may continue until an operator decides")]
    Held,
    /// Paid or declined, but the response was not kept.
    #[error("finished, but the response was not kept")]
    Omitted,
    /// The time was up during a try. Whether it paid is unknown: the next call with this key finds out.
    #[error("the time is up, and whether the last try paid is unknown")]
    TimedOut,
    /// The database or the library failed.
    #[error("the database failed: {source}")]
    Database {
        /// The same call may succeed. If the database did not answer COMMIT, the next call finds out what became of it.
        again: bool,
        /// The library's error.
        source: Box<dyn Error + Send + Sync>,
    },
}

impl PayError {
    pub(crate) fn database(again: bool, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Database { again, source: source.into() }
    }

    pub(crate) fn is_retryable(&self) -> bool {
        matches!(self, Self::InProgress | Self::Database { again: true, .. })
    }
}

/// Whether another try can help after an error of the server.
fn helps(sqlstate: &str) -> bool {
    // Serialization failure, deadlock, lock not available; connection lost; server shut down or session ended.
    matches!(sqlstate, "40001" | "40P01" | "55P03")
        || sqlstate.starts_with("08")
        || sqlstate.starts_with("57P")
}

// Without the server's answer, another try can help if the connection broke or the pool had none in time. An error that
// the library made itself, such as a value it cannot read, would come again.

impl From<DbErr> for PayError {
    fn from(error: DbErr) -> Self {
        let again = match &error {
            DbErr::ConnectionAcquire(ConnAcquireErr::Timeout) => true,
            DbErr::Conn(RuntimeErr::SqlxError(driver))
            | DbErr::Exec(RuntimeErr::SqlxError(driver))
            | DbErr::Query(RuntimeErr::SqlxError(driver)) => match &**driver {
                SqlxError::Database(error) => error.code().is_some_and(|code| helps(&code)),
                driver => matches!(driver, SqlxError::Io(_)),
            },
            _ => false,
        };
        Self::database(again, error)
    }
}

impl From<TransactionError<PayError>> for PayError {
    fn from(error: TransactionError<PayError>) -> Self {
        match error {
            TransactionError::Connection(error) => error.into(),
            TransactionError::Transaction(error) => error,
        }
    }
}

impl From<JoinError> for PayError {
    fn from(error: JoinError) -> Self {
        Self::database(false, error)
    }
}

impl From<DieselError> for PayError {
    fn from(error: DieselError) -> Self {
        Self::database(diesel_helps(&error), error)
    }
}

fn diesel_helps(error: &DieselError) -> bool {
    match error {
        // diesel keeps no SQLSTATE: deadlocks, and ends of sessions, are among the unknown kinds. diesel-async gives
        // UnableToSendCommand for every other error of tokio-postgres, which is mostly a lost connection.
        DieselError::DatabaseError(kind, _) => {
            matches!(kind, SerializationFailure | ClosedConnection | UnableToSendCommand | Unknown)
        }
        // The connection broke before.
        DieselError::BrokenTransactionManager => true,
        DieselError::RollbackErrorOnCommit { commit_error, .. } => diesel_helps(commit_error),
        _ => false,
    }
}

impl From<RunError> for PayError {
    fn from(error: RunError) -> Self {
        let again = match &error {
            RunError::TimedOut => true,
            RunError::User(DieselPoolError::QueryError(error))
            | RunError::User(DieselPoolError::ConnectionError(
                ConnectionError::CouldntSetupConfiguration(error),
            )) => diesel_helps(error),
            RunError::User(_) => false,
        };
        Self::database(again, error)
    }
}

impl From<tokio_postgres::Error> for PayError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::database(tokio_postgres_helps(&error), error)
    }
}

fn tokio_postgres_helps(error: &tokio_postgres::Error) -> bool {
    if let Some(code) = error.code() {
        return helps(code.code());
    }
    let io = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    // Of these kinds are messages that tokio-postgres cannot write or read.
    let io = io.map(io::Error::kind);
    let io = io.is_some_and(|io| !matches!(io, ErrorKind::InvalidInput | ErrorKind::InvalidData));
    io || error.is_closed()
}

impl From<PoolError> for PayError {
    fn from(error: PoolError) -> Self {
        let again = match &error {
            PoolError::Timeout(_) => true,
            PoolError::Backend(error) => tokio_postgres_helps(error),
            _ => false,
        };
        Self::database(again, error)
    }
}
