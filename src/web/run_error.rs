//! axum: what `run` and `run_leased` did not return, as a response.

use axum_core::body::Body;
use axum_core::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderValue};

use super::answer::Refusal;
use super::layer::{DOCS, REPLAY_MARKER};
use super::replay;
use super::route::{PAUSE_MAX, PAUSE_MIN};
use crate::error::{Error, ErrorKind};
use crate::operation::response::Response as Stored;
use crate::transactional::RunError;

/// - The work's own error makes its own response. (axum sends text with 200: with text as the error, a failure would look
///   like a success. Use a type of your own.)
/// - A kept failure is sent as it is stored: its code is the status (422 without a code), and its content type is JSON if
///   the body is JSON.
/// - Anything else has the status and the problem document (always JSON) of the
///   [layer](crate::web::IdempotencyLayer). For *in progress*, `Retry-After` is the rest of the lease, up to five
///   seconds.
/// - A key that breaks the limits of a [`Key`](crate::Key) is the client's fault (400). Any other invalid operation is
///   the program's (500).
///
/// ```
/// use axum::{Json, response::IntoResponse, http::StatusCode};
/// use pgonce::{Operation, PgOnce, RunError};
/// # struct ApiError;
/// # impl From<sqlx::Error> for ApiError { fn from(_: sqlx::Error) -> Self { Self } }
/// # impl IntoResponse for ApiError { fn into_response(self) -> axum::response::Response { StatusCode::PAYMENT_REQUIRED.into_response() } }
/// # impl pgonce::WorkError for ApiError { fn cause(&self) -> Option<&(dyn std::error::Error + 'static)> { None } }
/// # async fn charge(tx: &mut sqlx::PgConnection) -> Result<i64, ApiError> { Ok(1) }
///
/// async fn pay(once: PgOnce, pool: sqlx::PgPool, key: String) -> Result<Json<i64>, RunError<ApiError>> {
///     let op = Operation::new("acme/payments.create", key)?;
///     let payment = once.run(&pool, &op, async |tx| charge(tx).await).await?;
///     Ok(Json(*payment))
/// }
/// ```
#[cfg_attr(docsrs, doc(cfg(feature = "axum")))]
impl<E: IntoResponse> IntoResponse for RunError<E> {
    fn into_response(self) -> Response {
        let refusal = match self {
            Self::Work { error, .. } => return error.into_response(),
            Self::Failed { response, replayed } => return kept(response, replayed),
            Self::Omitted(stored) => match replay::status(&stored) {
                Ok(status) => Refusal::omitted(status),
                Err(error) => Refusal::unasked(&error),
            },
            Self::InProgress(wait) => Refusal::in_progress(wait.retry_after().min(PAUSE_MAX)),
            Self::Mismatch(_) => Refusal::mismatch(),
            Self::Held(_) => Refusal::held(),
            Self::Protocol(error) => of_protocol(&error),
        };
        refusal.into_response(DOCS, true).map(Body::from)
    }
}

fn of_protocol(error: &Error) -> Refusal {
    tracing::warn!(%error, sqlstate = error.sqlstate(), "an operation could not be protected");
    if error.is_of_key() {
        return Refusal::key_malformed(&error.to_string());
    }
    match error.kind() {
        ErrorKind::Corrupt => Refusal::unasked(error),
        // Another caller has the key now.
        ErrorKind::ClaimLost => Refusal::in_progress(PAUSE_MIN),
        ErrorKind::ReplayUnreadable => Refusal::omitted(StatusCode::OK),
        _ => Refusal::uncommitted(error),
    }
}

/// A failure that was kept.
fn kept(stored: Stored, replayed: bool) -> Response {
    if stored.is_omitted() {
        let status = replay::status(&stored).unwrap_or(StatusCode::UNPROCESSABLE_ENTITY);
        return Refusal::omitted(status).into_response(DOCS, true).map(Body::from);
    }
    let is_json = serde_json::from_slice::<serde::de::IgnoredAny>(stored.body()).is_ok();
    let stored = match stored.code() {
        None => stored.with_code(422),
        Some(_) => stored,
    };
    let mut response = match replay::replayed(stored) {
        Ok(response) => response.map(Body::from),
        Err(error) => {
            tracing::error!(%error, "a kept failure cannot be sent");
            return Refusal::unasked(&error).into_response(DOCS, true).map(Body::from);
        }
    };
    let headers = response.headers_mut();
    if is_json && !headers.contains_key(CONTENT_TYPE) {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    if replayed {
        headers.insert(REPLAY_MARKER, HeaderValue::from_static("true"));
    }
    response
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::convert::Infallible;

    use http_body_util::BodyExt;
    use serde_json::Value;

    use super::*;

    #[tokio::test]
    async fn a_response_says_retryable_where_the_error_does() {
        use ErrorKind as K;
        for kind in [
            K::InvalidInput,
            K::ClaimLost,
            K::Contention,
            K::CommitUnknown,
            K::CommitRefused,
            K::TransactionLost,
            K::Connection,
            K::ReadOnly,
            K::SchemaOutdated,
            K::SchemaTooNew,
            K::Corrupt,
            K::StepChanged,
            K::Encoding,
            K::ReplayUnreadable,
            K::TransactionAborted,
            K::Database,
        ] {
            let error = || RunError::<Infallible>::from(Error::new(kind, "x"));
            let body = error().into_response().into_body().collect().await.unwrap().to_bytes();
            let problem: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(problem["retryable"], error().is_retryable(), "{kind:?}: {problem}");
        }
    }
}
