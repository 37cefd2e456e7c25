//! axum: extractors, and parts of a response.

use axum_core::body::Body;
use axum_core::extract::FromRequestParts;
use axum_core::response::{IntoResponse, IntoResponseParts, Response, ResponseParts};
use http::StatusCode;
use http::request::Parts;

use super::answer::{Refusal, takes_json};
use super::handle::{OnceClaim, OnceRejection, OnceTx};
use super::key::KeyRules;
use super::layer::DOCS;
use super::settle::{Secret, Settle};
use crate::operation::key::Key;

/// The key in a request's `Idempotency-Key` header, for a handler without the layer that calls
/// [`run`](crate::PgOnce::run) itself. It is read as the layer reads it: `"abc"` and `abc` are one key. A request without
/// a key, or with a malformed one, gets the layer's answer (400).
///
/// ```
/// use pgonce::web::IdempotencyKey;
///
/// async fn pay(IdempotencyKey(key): IdempotencyKey) -> String {
///     format!("a key of {} bytes", key.as_str().len())
/// }
/// # axum::Router::<()>::new().route("/", axum::routing::post(pay));
/// ```
#[derive(Debug, Clone)]
pub struct IdempotencyKey(pub Key);

impl<S: Sync> FromRequestParts<S> for IdempotencyKey {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Response> {
        let rules = KeyRules::default();
        let refusal = match rules.key_in(&parts.headers) {
            Ok(Some(key)) => return Ok(Self(key)),
            Ok(None) => Refusal::key_missing(&rules.header),
            Err(detail) => Refusal::key_malformed(&detail),
        };
        Err(refusal.into_response(DOCS, takes_json(&parts.headers)).map(Body::from))
    }
}

impl<S: Sync> FromRequestParts<S> for OnceTx {
    type Rejection = OnceRejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, OnceRejection> {
        Self::of(&parts.extensions)
    }
}

impl<S: Sync> FromRequestParts<S> for OnceClaim {
    type Rejection = OnceRejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, OnceRejection> {
        Self::of(&parts.extensions)
    }
}

/// 503 where there is no connection to the database; otherwise 500, because the program has to be mended.
impl IntoResponse for OnceRejection {
    fn into_response(self) -> Response {
        tracing::error!("{self}");
        let status = match self {
            Self::NoConnection => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        status.into_response()
    }
}

impl IntoResponseParts for Settle {
    type Error = std::convert::Infallible;

    fn into_response_parts(self, mut parts: ResponseParts) -> Result<ResponseParts, Self::Error> {
        parts.extensions_mut().insert(self);
        Ok(parts)
    }
}

impl IntoResponseParts for Secret {
    type Error = std::convert::Infallible;

    fn into_response_parts(self, mut parts: ResponseParts) -> Result<ResponseParts, Self::Error> {
        parts.extensions_mut().insert(self);
        Ok(parts)
    }
}
