//! What went wrong, as a visitor reads it.

use std::error::Error as StdError;

use http::StatusCode;
use pgonce::{Error, ErrorKind, sqlx};

/// A banner: what is wrong and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) status: StatusCode,
    pub(crate) says: String,
    /// The claim has changed, is live, or is gone: look again.
    pub(crate) is_refusal: bool,
}

/// The statement was cancelled, as statement_timeout does it.
const CANCELED: &str = "57014";
const MISSING_RIGHT: &str = "42501";

impl Problem {
    fn new(status: StatusCode, says: impl Into<String>) -> Self {
        Self { status, says: says.into(), is_refusal: false }
    }

    pub(crate) fn slow() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "The database did not answer in time. It may be busy; this page gave up so as not to make it worse.",
        )
    }

    pub(crate) fn away() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "The database cannot be reached, or all connections of this page are in use. Try again in a moment.",
        )
    }

    pub(crate) fn invalid(says: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, says)
    }

    pub(crate) fn forbidden(says: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, says)
    }

    pub(crate) fn not_found(says: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, says)
    }

    pub(crate) fn changed() -> Self {
        Self::refused("the key has changed since you looked at it")
    }

    /// `says`: why, as a clause.
    pub(crate) fn refused(says: &str) -> Self {
        let says = format!("Nothing was done: {says}. Look at the key again before you decide.");
        Self { is_refusal: true, ..Self::new(StatusCode::CONFLICT, says) }
    }

    /// One word for audit lines.
    pub(crate) fn word(&self) -> &'static str {
        match self.status {
            StatusCode::CONFLICT => "refused",
            StatusCode::FORBIDDEN => "forbidden",
            StatusCode::BAD_REQUEST => "invalid",
            StatusCode::NOT_FOUND => "unknown key",
            _ => "failed",
        }
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        match (error.kind(), error.sqlstate().as_deref()) {
            (_, Some(CANCELED)) => Self::slow(),
            (ErrorKind::ClaimLost, _) => Self::refused(&clause(&error)),
            (ErrorKind::InvalidInput, _) => Self::invalid(sentence(&error.to_string())),
            (ErrorKind::Connection, _) => Self::away(),
            (ErrorKind::ReadOnly, _) => Self::forbidden(
                "Nothing was done: the database takes no writes. It is a standby, or read-only.",
            ),
            (ErrorKind::CommitUnknown, _) => Self::new(
                StatusCode::BAD_GATEWAY,
                "The connection broke during COMMIT: it may have been done, or not. Look at the key again.",
            ),
            (_, Some(MISSING_RIGHT)) => Self::new(
                StatusCode::FORBIDDEN,
                format!("The database role of this page lacks a right: {}", clause(&error)),
            ),
            _ => Self::new(StatusCode::BAD_GATEWAY, sentence(&error.to_string())),
        }
    }
}

impl From<sqlx::Error> for Problem {
    fn from(error: sqlx::Error) -> Self {
        match error.as_database_error().and_then(|error| error.code()).as_deref() {
            Some(CANCELED) => Self::slow(),
            Some(_) => Self::new(StatusCode::BAD_GATEWAY, sentence(&innermost(&error))),
            None => Self::away(),
        }
    }
}

/// The database's words in place of the library's, which repeat them.
fn clause(error: &Error) -> String {
    error.source().map_or_else(|| error.to_string(), innermost)
}

fn innermost(error: &(dyn StdError + 'static)) -> String {
    let mut error = error;
    loop {
        // Not the driver's own text: it adds a line number in the server's source.
        if let Some(raised) =
            error.downcast_ref::<sqlx::Error>().and_then(|error| error.as_database_error())
        {
            return raised.message().to_owned();
        }
        match error.source() {
            Some(cause) => error = cause,
            None => return error.to_string(),
        }
    }
}

fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    let first: String = letters.next().into_iter().flat_map(char::to_uppercase).collect();
    format!("{first}{}.", letters.as_str().trim_end_matches('.'))
}
