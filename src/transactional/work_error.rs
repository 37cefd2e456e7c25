//! What pgonce must see of the work's error.

use std::error::Error as StdError;

use super::outcome::Ending;
use super::run_error::RunError;
use crate::operation::response::Response;

/// An error that work may fail with. pgonce looks in it for the database's error, to start again after a serialization
/// failure or a deadlock, and returns it as [`RunError::Work`](crate::RunError::Work).
///
/// Every [`std::error::Error`] is one, and so are `anyhow::Error`, `Box<dyn std::error::Error + Send + Sync>`,
/// [`Failure`](crate::Failure) and text. Another type, such as an HTTP error that only implements `IntoResponse`, needs
/// this:
///
/// ```
/// enum ApiError {
///     NotFound,
///     Database(sqlx::Error),
/// }
///
/// impl pgonce::WorkError for ApiError {
///     fn cause(&self) -> Option<&(dyn std::error::Error + 'static)> {
///         match self {
///             Self::Database(error) => Some(error),
///             Self::NotFound => None,
///         }
///     }
/// }
/// ```
///
/// `Kind` tells these families apart; it is inferred. So a type must belong to one of them only: do not implement this
/// trait for a `std::error::Error`, and wrap an `Arc<dyn std::error::Error + Send + Sync>` in a type of your own.
#[diagnostic::on_unimplemented(
    message = "pgonce cannot look for the database's error in `{Self}`",
    label = "the work fails with `{Self}`",
    note = "derive `std::error::Error` for `{Self}`, or add:\n\
            impl pgonce::WorkError for {Self} {{\n    \
            fn cause(&self) -> Option<&(dyn std::error::Error + 'static)> {{ /* the sqlx::Error in it */ }}\n}}"
)]
pub trait WorkError<Kind = kind::Explicit>: Sized {
    /// The error itself, or the one in it that may come from the database. Its [sources](std::error::Error::source)
    /// count, too.
    fn cause(&self) -> Option<&(dyn StdError + 'static)>;

    /// The response of a failure that is final: the work's writes are undone, the response is stored, and every retry
    /// gets it as [`RunError::Failed`](crate::RunError::Failed). `None`, the default: nothing is remembered.
    ///
    /// ```
    /// use pgonce::Response;
    ///
    /// enum ApiError {
    ///     Declined,
    ///     Database(sqlx::Error),
    /// }
    ///
    /// impl pgonce::WorkError for ApiError {
    ///     fn cause(&self) -> Option<&(dyn std::error::Error + 'static)> {
    ///         match self {
    ///             Self::Database(error) => Some(error),
    ///             Self::Declined => None,
    ///         }
    ///     }
    ///
    ///     fn keep(&self) -> Option<Response> {
    ///         match self {
    ///             Self::Declined => Some(Response::bytes("card declined").with_code(402)),
    ///             Self::Database(_) => None,
    ///         }
    ///     }
    /// }
    /// ```
    fn keep(&self) -> Option<Response> {
        None
    }

    #[doc(hidden)]
    fn into_ending(self) -> Ending<Self> {
        match self.keep() {
            Some(response) => Ending::Keep(response),
            None => Ending::Undo(RunError::work(self)),
        }
    }
}

/// The families of [`WorkError`], which keep implementations from overlapping.
#[allow(missing_debug_implementations, unreachable_pub, reason = "cannot be named outside")]
pub mod kind {
    pub struct Explicit;
    pub struct StdError;
    pub struct AsStdError;
}

impl<E: StdError + 'static> WorkError<kind::StdError> for E {
    fn cause(&self) -> Option<&(dyn StdError + 'static)> {
        Some(self)
    }
}

/// `anyhow::Error` and boxed errors.
impl<E: AsRef<dyn StdError + Send + Sync>> WorkError<kind::AsStdError> for E {
    fn cause(&self) -> Option<&(dyn StdError + 'static)> {
        Some(self.as_ref())
    }
}

impl WorkError for String {
    fn cause(&self) -> Option<&(dyn StdError + 'static)> {
        None
    }
}

impl WorkError for std::borrow::Cow<'static, str> {
    fn cause(&self) -> Option<&(dyn StdError + 'static)> {
        None
    }
}

impl WorkError for &'static str {
    fn cause(&self) -> Option<&(dyn StdError + 'static)> {
        None
    }
}
