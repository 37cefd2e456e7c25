//! What can go wrong with a write.

use std::fmt;

use crate::error::sqlstate_in;

/// Why a write has no outcome. Roll the transaction back: a statement may have written. (So call these functions in one.)
///
/// `Display` and `Debug` show no values of the row.
#[non_exhaustive]
pub enum WriteError {
    /// A unique constraint refused the row: another one than the `on conflict` names, or one that the new values of an
    /// updated or restored row would break. Also if a trigger's write was refused.
    Taken {
        /// The constraint or unique index.
        constraint: String,
        /// The database's error.
        source: sqlx::Error,
    },
    /// The statements are wrong, or do not belong together. The text says how. They fail the same way again, unless others
    /// change the row back and forth at the same time.
    Statement(String),
    /// Any other error of the database. [`run`](crate::PgOnce::run) starts again after serialization failures and
    /// deadlocks, as for every error of its work.
    Database(sqlx::Error),
}

impl WriteError {
    pub(super) fn of(error: sqlx::Error) -> Self {
        let raised = error.as_database_error();
        match raised
            .filter(|raised| raised.is_unique_violation())
            .and_then(|raised| raised.constraint())
        {
            Some(constraint) => Self::Taken { constraint: constraint.to_owned(), source: error },
            None => Self::Database(error),
        }
    }
}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Taken { constraint, .. } => {
                write!(f, "the unique constraint {constraint} refused the row")
            }
            Self::Statement(problem) => f.write_str(problem),
            Self::Database(error) => match (sqlstate_in(error), error) {
                (Some(sqlstate), _) => {
                    write!(f, "the database refused the write (SQLSTATE {sqlstate})")
                }
                (None, sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_)) => {
                    f.write_str("the write got no answer from the database")
                }
                (None, _) => {
                    f.write_str("the write ran, and the row that it returned cannot be read")
                }
            },
        }
    }
}

// By hand: the driver's error quotes rows.
impl fmt::Debug for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WriteError({self})")
    }
}

impl std::error::Error for WriteError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Taken { source, .. } | Self::Database(source) => Some(source),
            Self::Statement(_) => None,
        }
    }
}
