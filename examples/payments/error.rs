//! The service's error responses, as problem details (RFC 9457) like those of the idempotency layer.

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, WWW_AUTHENTICATE};
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// The comments say what happens to the key. The layer decides by the status, and by whether the handler has used its
/// transaction or claim; `pgonce::web::Settle` in a response would override that.
#[derive(Debug)]
pub enum ApiError {
    /// 401, outside the idempotency layer, which does not see the key.
    Unauthorized,
    /// 404 to a `GET`, which has no key.
    NotFound,
    /// 400, before the handler has done anything: the key stays free.
    Invalid(String),
    /// axum's answer to a body that is no order. The key stays free too.
    NoOrder(JsonRejection),
    /// 402, from the handler: final. Its writes are rolled back, and a retry gets this response again.
    Declined(&'static str),
    /// 502: unknown whether the provider charged the card. The provider got a derived key, so the client's key stays
    /// bound to this order: a retry runs the handler again, another order with this key is refused.
    ProviderAway(String),
    /// 500: the writes are rolled back, and a retry runs the handler again. The key is free, unless the provider was
    /// called; then the key stays bound to its order.
    Broken(String),
}

impl ApiError {
    fn status(&self) -> StatusCode {
        match self {
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::NotFound => StatusCode::NOT_FOUND,
            // axum answers 422. In the idempotency layer, 422 means that the key belongs to another request.
            Self::Invalid(_) | Self::NoOrder(JsonRejection::JsonDataError(_)) => {
                StatusCode::BAD_REQUEST
            }
            Self::NoOrder(rejection) => rejection.status(),
            Self::Declined(_) => StatusCode::PAYMENT_REQUIRED,
            Self::ProviderAway(_) => StatusCode::BAD_GATEWAY,
            Self::Broken(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// For the client. The cause goes to the log.
    fn detail(&self) -> String {
        match self {
            Self::Unauthorized => "Send `Authorization: Bearer TENANT`.".to_owned(),
            Self::NotFound => "Not found.".to_owned(),
            Self::Invalid(detail) => format!("{detail}."),
            Self::NoOrder(rejection) => rejection.body_text(),
            Self::Declined(reason) => (*reason).to_owned(),
            Self::ProviderAway(_) => {
                "The card provider did not answer; the card may be charged. Send the same \
                 request with the same key again."
                    .to_owned()
            }
            Self::Broken(_) => {
                "Internal error. Send the same request with the same key again.".to_owned()
            }
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if let Self::ProviderAway(cause) | Self::Broken(cause) = &self {
            tracing::error!("{cause}");
        }
        let status = self.status();
        let problem = json!({
            "title": status.canonical_reason(),
            "status": status.as_u16(),
            "detail": self.detail(),
        });
        let content_type = [(CONTENT_TYPE, "application/problem+json")];
        let response = (status, content_type, Json(problem));
        match self {
            Self::Unauthorized => ([(WWW_AUTHENTICATE, "Bearer")], response).into_response(),
            _ => response.into_response(),
        }
    }
}

impl From<JsonRejection> for ApiError {
    fn from(rejection: JsonRejection) -> Self {
        Self::NoOrder(rejection)
    }
}

impl From<sqlx::Error> for ApiError {
    fn from(error: sqlx::Error) -> Self {
        Self::Broken(error.to_string())
    }
}

impl From<pgonce::Error> for ApiError {
    fn from(error: pgonce::Error) -> Self {
        Self::Broken(error.to_string())
    }
}
