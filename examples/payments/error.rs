//! What the service answers when it does not go well: problem details (RFC 9457), as the idempotency
//! layer does.

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, WWW_AUTHENTICATE};
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// The comments say what becomes of the key. The layer goes by the status, and by whether the handler has
/// used its transaction or claim; `pgonce::web::Settle` in a response would overrule that.
#[derive(Debug)]
pub enum ApiError {
    /// 401, outside the idempotency layer: the key is not even looked at.
    Unauthorized,
    /// 404 to a `GET`, which has no key.
    NotFound,
    /// 400, before the handler did anything: the key stays free.
    Invalid(String),
    /// What axum says of a body that is no order. The same.
    NoOrder(JsonRejection),
    /// 402, from the handler: final. Its writes are undone, and a retry gets this answer again.
    Declined(&'static str),
    /// 502: it is not known whether the provider charged the card. The provider was sent a derived key, so the client's
    /// key stays with this order: a retry runs the handler again, and another order under this key is refused.
    ProviderAway(String),
    /// 500: its writes are undone, and a retry runs the handler again. The key is free, unless the provider has
    /// been called; then it stays with its order.
    Broken(String),
}

impl ApiError {
    fn status(&self) -> StatusCode {
        match self {
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::NotFound => StatusCode::NOT_FOUND,
            // axum says 422, which the idempotency layer says when a key belongs to another request.
            Self::Invalid(_) | Self::NoOrder(JsonRejection::JsonDataError(_)) => {
                StatusCode::BAD_REQUEST
            }
            Self::NoOrder(rejection) => rejection.status(),
            Self::Declined(_) => StatusCode::PAYMENT_REQUIRED,
            Self::ProviderAway(_) => StatusCode::BAD_GATEWAY,
            Self::Broken(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// For the client. What broke is for the log.
    fn detail(&self) -> String {
        match self {
            Self::Unauthorized => "Send `Authorization: Bearer TENANT`.".to_owned(),
            Self::NotFound => "You have no such thing.".to_owned(),
            Self::Invalid(detail) => format!("{detail}."),
            Self::NoOrder(rejection) => rejection.body_text(),
            Self::Declined(reason) => (*reason).to_owned(),
            Self::ProviderAway(_) => {
                "The card provider did not answer; the card may be charged. Send the same \
                 request with the same key again."
                    .to_owned()
            }
            Self::Broken(_) => {
                "Something broke here. Send the same request with the same key again.".to_owned()
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
