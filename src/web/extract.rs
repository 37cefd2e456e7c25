//! axum: extractors, and parts of a response.

use axum_core::extract::FromRequestParts;
use axum_core::response::{IntoResponse, IntoResponseParts, Response, ResponseParts};
use http::StatusCode;
use http::request::Parts;

use super::handle::{OnceClaim, OnceRejection, OnceTx};
use super::settle::{Secret, Settle};

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
