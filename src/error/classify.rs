//! What an error of the database or its driver means. Every check for retryable errors relies on this file.

use std::error::Error as StdError;

use sqlx::postgres::{PgDatabaseError, PgSeverity};

use super::encoding::{UNTRANSLATABLE, cannot_hold, named_in};
use super::{Error, ErrorKind};
use crate::transactional::later::Later;

impl ErrorKind {
    pub(super) fn is_retryable(self, sqlstate: Option<&str>) -> bool {
        match self {
            Self::Contention | Self::CommitUnknown | Self::Connection | Self::ReadOnly => true,
            // 55P03: the lock ends with its transaction. 53: out of disk, memory or locks.
            Self::Database => {
                sqlstate.is_some_and(|code| code == "55P03" || code.starts_with("53"))
            }
            _ => false,
        }
    }

    fn of(error: &sqlx::Error) -> Self {
        match error {
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed => Self::Connection,
            _ => raised_by(error).map_or(Self::Database, Self::of_raised),
        }
    }

    fn of_raised(raised: &PgDatabaseError) -> Self {
        match raised.code() {
            // An argument with NUL, bad UTF-8, or a character that the database's encoding lacks.
            "IK001" | "22021" | UNTRANSLATABLE => Self::InvalidInput,
            "IK002" => Self::ClaimLost,
            "IK003" => Self::Corrupt,
            "IK006" => Self::SchemaOutdated,
            "IK007" => Self::SchemaTooNew,
            "IK008" => Self::TransactionLost,
            // A procedure was called inside a transaction.
            "2D000" => Self::InvalidInput,
            "40001" | "40P01" => Self::Contention,
            // COMMIT became RELEASE, because a nested transaction was left open (3B001), or the work sent its own
            // COMMIT or ROLLBACK (25P01).
            "3B001" | "25P01" => Self::TransactionLost,
            "25P02" => Self::TransactionAborted,
            "25006" => Self::ReadOnly,
            // No such schema, table, column, type or function.
            "3F000" | "42P01" | "42703" | "42704" | "42883" => Self::SchemaOutdated,
            // The server accepts no connection, or has ended this one.
            "53300" | "25P03" | "25P04" | "57P01" | "57P02" | "57P03" | "57P05" => Self::Connection,
            // From the server: bound values do not fit the statement. Poolers hang up with the same code.
            "08P01" if raised.severity() == PgSeverity::Error => Self::Database,
            code if code.starts_with("08") => Self::Connection,
            _ => Self::Database,
        }
    }
}

/// Wraps an error of one of pgonce's statements.
pub(crate) fn database(error: sqlx::Error) -> Error {
    let raised = raised_by(&error);
    let kind = match raised {
        Some(raised) if took_the_key(raised) => ErrorKind::Contention,
        _ => ErrorKind::of(&error),
    };
    let message = match raised {
        Some(raised) => of_raised(kind, raised),
        None if matches!(error, sqlx::Error::PoolTimedOut) => {
            "no connection came free in time: all of the pool's are in use, or the server has reached its \
             max_connections"
                .to_owned()
        }
        None if is_silence(&error) => {
            "a connection to the database gave no answer in time; it is closed".to_owned()
        }
        None if kind == ErrorKind::Connection => UNREACHED.to_owned(),
        None => "the database driver failed".to_owned(),
    };
    Error::with_source(kind, message, error)
}

fn is_silence(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Io(io) if io.kind() == std::io::ErrorKind::TimedOut)
}

/// Whether another transaction wrote the key's row without the key's lock, after begin saw no row.
fn took_the_key(raised: &PgDatabaseError) -> bool {
    raised.code() == "23505" && raised.constraint() == Some("idempotency_keys_pkey")
}

pub(super) const UNREACHED: &str = "the database could not be reached or hung up";

/// Describes the server's error. Repeats its text, which may quote a row, only if that can name nothing but objects.
fn of_raised(kind: ErrorKind, raised: &PgDatabaseError) -> String {
    let code = raised.code();
    let words = match (kind, code) {
        // From pgonce's functions: the message names field and limit, never a value.
        (_, code) if code.starts_with("IK") => return raised.message().to_owned(),
        (_, "2D000") => "a transaction is open on this connection, and this call commits by itself",
        (_, "25P03" | "57P05") => {
            "the server ended the session because it was idle for too long (idle_in_transaction_session_timeout \
             or idle_session_timeout); nothing was committed"
        }
        (_, "25P04") => "the server ended the session because of its transaction_timeout",
        (_, "53300") => "the server has reached its max_connections",
        (_, "08P01") if kind == ErrorKind::Database => {
            "a prepared statement is another client's: a pooler in transaction mode does not keep track of prepared \
             statements"
        }
        (_, "26000" | "42P05") => {
            "a prepared statement is gone or there already: a pooler in transaction mode does not keep track of \
             prepared statements, or a pooler or the work has sent DEALLOCATE or DISCARD ALL"
        }
        (_, "53200") => {
            "the server has run out of memory or of room in its lock table (max_locks_per_transaction)"
        }
        (_, code) if code.starts_with("53") => {
            "the server has run out of disk space or another resource"
        }
        (_, "42501") => "a right or a policy is missing",
        (_, UNTRANSLATABLE) => return cannot_hold("an argument", named_in(raised)),
        (ErrorKind::InvalidInput, _) => "an argument is not valid UTF-8 without NUL",
        (ErrorKind::Contention, _) => {
            "the database gave up this transaction for another one; run it again"
        }
        (ErrorKind::TransactionLost, _) => {
            "the work ended or left open a transaction that was not its own"
        }
        (ErrorKind::TransactionAborted, _) => {
            "an earlier error in this transaction was swallowed; PostgreSQL takes nothing but a rollback after it"
        }
        (ErrorKind::ReadOnly, _) => "the database is read-only; pgonce needs the primary",
        (ErrorKind::SchemaOutdated, _) => {
            return format!(
                "pgonce's schema is missing or outdated; run migrate ({})",
                objects(raised)
            );
        }
        (ErrorKind::Connection, _) => UNREACHED,
        _ => return format!("the database refused ({})", objects(raised)),
    };
    format!("{words} ({})", objects(raised))
}

/// The SQLSTATE, and the objects that the error is about.
fn objects(raised: &PgDatabaseError) -> String {
    /// Where the server looks up names, rights and policies: messages from there name objects, never values.
    const NAMES_ONLY: [&str; 6] = [
        "aclchk.c",
        "execMain.c",
        "namespace.c",
        "parse_func.c",
        "parse_relation.c",
        "parse_type.c",
    ];
    let mut words = vec![format!("SQLSTATE {}", raised.code())];
    if raised.file().is_some_and(|file| NAMES_ONLY.contains(&file)) {
        words.push(raised.message().to_owned());
    }
    if let Some(constraint) = raised.constraint() {
        words.push(format!("constraint {constraint}"));
    }
    if let Some(table) = raised.table() {
        words.push(format!("table {}.{table}", raised.schema().unwrap_or_default()));
    }
    words.join(", ")
}

/// Wraps an error of a statement that needs a claim. Claims live in pgonce's schema, so a database without the schema
/// is not the claim's.
pub(crate) fn of_claim(error: sqlx::Error) -> Error {
    match raised_by(&error) {
        Some(raised) if ErrorKind::of_raised(raised) == ErrorKind::SchemaOutdated => {
            let message = format!(
                "the claim is not in this database, where pgonce's schema is missing or another one ({}); finish it \
                 in the database in which it was begun",
                objects(raised)
            );
            Error::with_source(ErrorKind::ClaimLost, message, error)
        }
        _ => database(error),
    }
}

/// The same for a wrapped error.
pub(crate) fn of_claims_call(error: Error) -> Error {
    if error.kind != ErrorKind::SchemaOutdated {
        return error;
    }
    match error.source.map(|source| source.downcast::<sqlx::Error>()) {
        Some(Ok(driver)) => of_claim(*driver),
        _ => Error::new(error.kind, error.message),
    }
}

/// Wraps an error of COMMIT. After an ERROR the server has rolled back, except for the codes of `leaves_open`. After a
/// FATAL or a lost connection, also one that a proxy reports, the outcome is unknown.
pub(crate) fn commit(error: sqlx::Error) -> Error {
    let Some(raised) = raised_by(&error) else {
        return match &error {
            // Only a write fails like this: COMMIT was not sent.
            sqlx::Error::Io(io) if io.kind() == std::io::ErrorKind::BrokenPipe => {
                Error::with_source(
                    ErrorKind::Connection,
                    "the connection was closed before COMMIT could be sent; nothing was committed",
                    error,
                )
            }
            _ => unknown(error),
        };
    };
    match raised.code() {
        // The server says this only while it waits for a command: it has not read COMMIT.
        "25P03" | "57P05" if raised.severity() == PgSeverity::Fatal => database(error),
        code if raised.severity() != PgSeverity::Error || leaves_open(code) => unknown(error),
        code if code.starts_with("IK") || took_the_key(raised) => database(error),
        code => match ErrorKind::of_raised(raised) {
            // From a deferred constraint or trigger, not from a statement of pgonce.
            ErrorKind::Database | ErrorKind::SchemaOutdated | ErrorKind::InvalidInput
                if !ErrorKind::Database.is_retryable(Some(code)) =>
            {
                let message =
                    format!("COMMIT was refused, and nothing was committed ({})", objects(raised));
                let kind = match code.starts_with("23") || code == "P0001" {
                    true => ErrorKind::CommitRefused,
                    false => ErrorKind::Database,
                };
                Error::with_source(kind, message, error)
            }
            _ => database(error),
        },
    }
}

/// Whether a server, or a proxy in front of it, that answers COMMIT with this code may have committed: connection
/// exception, operator intervention, system error, internal error, statement completion unknown.
fn leaves_open(sqlstate: &str) -> bool {
    ["08", "57P", "58", "XX", "40003"].iter().any(|start| sqlstate.starts_with(start))
}

fn unknown(error: sqlx::Error) -> Error {
    Error::with_source(
        ErrorKind::CommitUnknown,
        "the connection or the server broke during COMMIT; begin again with the same key to find out",
        error,
    )
}

/// The SQLSTATE in a chain of sources, if the database sent one.
pub(crate) fn sqlstate_in<'e>(error: &'e (dyn StdError + 'static)) -> Option<&'e str> {
    raised_in(error).map(PgDatabaseError::code)
}

pub(super) fn raised_by(error: &sqlx::Error) -> Option<&PgDatabaseError> {
    error.as_database_error().and_then(|error| error.try_downcast_ref())
}

pub(super) fn raised_in<'e>(error: &'e (dyn StdError + 'static)) -> Option<&'e PgDatabaseError> {
    causes(error).find_map(|error| match error.downcast_ref::<sqlx::Error>() {
        Some(driver) => raised_by(driver),
        // What remains of a driver's error in an `anyhow::Error`, which hides its outermost type.
        None => error.downcast_ref().or_else(|| {
            let boxed = error.downcast_ref::<Box<dyn sqlx::error::DatabaseError>>();
            boxed.and_then(|e| e.try_downcast_ref())
        }),
    })
}

/// An error and its sources.
pub(crate) fn causes<'e>(
    error: &'e (dyn StdError + 'static),
) -> impl Iterator<Item = &'e (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error| {
        let error: &'e (dyn StdError + 'static) = *error;
        error.source()
    })
}

/// Whether an error has a cause that may pass: `Later`, or an error of pgonce, the database or a connection.
pub(crate) fn is_retryable(error: &(dyn StdError + 'static)) -> bool {
    if Later::in_causes(error).is_some() {
        return true;
    }
    if let Some(ours) = causes(error).find_map(|error| error.downcast_ref::<Error>()) {
        return ours.is_retryable();
    }
    match raised_in(error) {
        Some(raised) => ErrorKind::of_raised(raised).is_retryable(Some(raised.code())),
        None => is_disconnection(error),
    }
}

/// Whether a connection broke or could not be made. An `anyhow::Error` shows only the I/O error in a driver's error, so
/// these kinds of I/O errors count wherever they come from; other kinds do not.
pub(super) fn is_disconnection(error: &(dyn StdError + 'static)) -> bool {
    use std::io::ErrorKind as Io;
    causes(error).any(|error| {
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
        kind == Some(ErrorKind::Connection) || broken
    })
}
