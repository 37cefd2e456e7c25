//! The error of a payment, and what each library says about an error of the database.

use std::error::Error;

use diesel::result::DatabaseErrorKind::{
    ClosedConnection, SerializationFailure, UnableToSendCommand, Unknown,
};
use diesel::result::Error as DieselError;
use sea_orm::{DbErr, RuntimeErr};
use tokio_postgres::error::SqlState;

/// Why there is no payment.
#[derive(Debug, thiserror::Error)]
pub enum PayError {
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
    /// The database failed.
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

/// Whether another try can help after an error with this SQLSTATE. None: the server did not answer.
fn helps(sqlstate: Option<&str>) -> bool {
    // Serialization failure, deadlock, lock not available; connection lost; server shut down or session ended.
    sqlstate.is_none_or(|code| {
        matches!(code, "40001" | "40P01" | "55P03")
            || code.starts_with("08")
            || code.starts_with("57P")
    })
}

impl From<DbErr> for PayError {
    fn from(error: DbErr) -> Self {
        let driver = match &error {
            DbErr::Conn(RuntimeErr::SqlxError(driver))
            | DbErr::Exec(RuntimeErr::SqlxError(driver))
            | DbErr::Query(RuntimeErr::SqlxError(driver)) => driver.as_database_error(),
            _ => None,
        };
        Self::database(helps(driver.and_then(|driver| driver.code()).as_deref()), error)
    }
}

impl From<DieselError> for PayError {
    fn from(error: DieselError) -> Self {
        // diesel keeps no SQLSTATE. Deadlocks, and ends of sessions, are among the unknown kinds.
        let again = match &error {
            DieselError::DatabaseError(kind, _) => matches!(
                kind,
                SerializationFailure | ClosedConnection | UnableToSendCommand | Unknown
            ),
            DieselError::BrokenTransactionManager | DieselError::RollbackErrorOnCommit { .. } => {
                true
            }
            _ => false,
        };
        Self::database(again, error)
    }
}

impl From<diesel_async::pooled_connection::bb8::RunError> for PayError {
    fn from(error: diesel_async::pooled_connection::bb8::RunError) -> Self {
        Self::database(true, error)
    }
}

impl From<tokio_postgres::Error> for PayError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::database(helps(error.code().map(SqlState::code)), error)
    }
}

impl From<deadpool_postgres::PoolError> for PayError {
    fn from(error: deadpool_postgres::PoolError) -> Self {
        Self::database(true, error)
    }
}
