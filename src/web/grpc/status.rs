//! gRPC's status codes (`google.rpc.Code`), as the layer's rule for statuses sees them, and the layer's own answers.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::response::Parts;
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use crate::web::answer::Answer;

pub(super) const STATUS: &str = "grpc-status";
const MESSAGE: &str = "grpc-message";

const INVALID_ARGUMENT: u16 = 3;
const ALREADY_EXISTS: u16 = 6;
const PERMISSION_DENIED: u16 = 7;
const RESOURCE_EXHAUSTED: u16 = 8;
const FAILED_PRECONDITION: u16 = 9;
pub(super) const UNIMPLEMENTED: u16 = 12;
pub(super) const INTERNAL: u16 = 13;
const UNAVAILABLE: u16 = 14;

/// The status of HTTP that stands for a code in the rule for statuses: the one in google/rpc/code.proto, but for
/// CANCELLED and ABORTED, which mean *try again*, and UNIMPLEMENTED, which comes from before the method: none is final.
pub(super) fn as_http(trailers: &HeaderMap) -> StatusCode {
    let code = trailers.get(STATUS).and_then(|code| code.to_str().ok());
    match code.and_then(|code| code.parse().ok()) {
        Some(0) => StatusCode::OK,
        Some(1) => StatusCode::REQUEST_TIMEOUT,
        Some(3 | 9 | 11) => StatusCode::BAD_REQUEST,
        Some(4) => StatusCode::GATEWAY_TIMEOUT,
        Some(5) => StatusCode::NOT_FOUND,
        Some(6) => StatusCode::CONFLICT,
        Some(7) => StatusCode::FORBIDDEN,
        Some(8) => StatusCode::TOO_MANY_REQUESTS,
        Some(10 | 14) => StatusCode::SERVICE_UNAVAILABLE,
        Some(UNIMPLEMENTED) => StatusCode::METHOD_NOT_ALLOWED,
        Some(16) => StatusCode::UNAUTHORIZED,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// gRPC's code for a status of HTTP that came without one (gRPC, *HTTP to gRPC Status Code Mapping*).
pub(super) fn of_http(status: StatusCode) -> u16 {
    match status.as_u16() {
        400 => INTERNAL,
        401 => 16,
        403 => PERMISSION_DENIED,
        404 => UNIMPLEMENTED,
        429 | 502 | 503 | 504 => UNAVAILABLE,
        _ => 2,
    }
}

/// The operation is done or has failed, and there is no message to replay: it was not stored, or not by gRPC.
pub(super) fn without_message(parts: Parts) -> Response<()> {
    let mut response = match parts.status.as_u16() {
        400.. => only_status(
            FAILED_PRECONDITION,
            "The operation has failed, and its answer was not kept.",
        ),
        _ => only_status(ALREADY_EXISTS, "The operation is done, and its answer was not kept."),
    };
    response.headers_mut().insert("idempotency-error", HeaderValue::from_static("omitted"));
    carry(parts, &mut response);
    response
}

/// Takes over the layer's headers, and its extensions.
pub(super) fn carry(parts: Parts, to: &mut Response<()>) {
    for name in ["idempotent-replayed", "idempotency-status"] {
        if let Some(value) = parts.headers.get(name) {
            to.headers_mut().insert(name, value.clone());
        }
    }
    to.extensions_mut().extend(parts.extensions);
}

/// Another protocol's request.
pub(super) fn not_grpc() -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
    response
}

/// An answer of the layer's own, a problem document, as a status without a message.
pub(super) fn refused(parts: Parts, problem: &Bytes) -> Response<()> {
    let answer = parts.extensions.get::<Answer>().copied();
    let problem = serde_json::from_slice(problem).unwrap_or(serde_json::Value::Null);
    let text = |field: &str| problem[field].as_str().unwrap_or_default();
    let retryable = problem["retryable"].as_bool().unwrap_or_default();
    let message = format!("{}. {}", text("title"), text("detail"));
    let mut response = only_status(code_of(answer, retryable), &message);
    let headers = response.headers_mut();
    if let Ok(code) = HeaderValue::from_str(text("code")) {
        headers.insert("idempotency-error", code);
    }
    let pause = parts.headers.get(RETRY_AFTER).and_then(|pause| pause.to_str().ok()?.parse().ok());
    if let Some(seconds) = pause {
        headers
            .insert("grpc-retry-pushback-ms", HeaderValue::from(1000_u64.saturating_mul(seconds)));
    }
    carry(parts, &mut response);
    response
}

fn code_of(answer: Option<Answer>, retryable: bool) -> u16 {
    match answer {
        Some(Answer::Mismatch | Answer::Held) => FAILED_PRECONDITION,
        Some(Answer::KeyMissing | Answer::KeyMalformed) => INVALID_ARGUMENT,
        Some(Answer::ReplayRefused) => PERMISSION_DENIED,
        Some(Answer::RequestTooLarge) => RESOURCE_EXHAUSTED,
        _ if retryable => UNAVAILABLE,
        _ => INTERNAL,
    }
}

pub(super) fn streaming() -> Response<()> {
    only_status(
        UNIMPLEMENTED,
        "A method under an idempotency key takes one message and returns one.",
    )
}

/// gRPC's *Trailers-Only*.
pub(super) fn only_status(code: u16, message: &str) -> Response<()> {
    let mut response = Response::new(());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(STATUS, HeaderValue::from(code));
    if let Ok(message) = HeaderValue::from_str(&percent_encoded(message)) {
        headers.insert(MESSAGE, message);
    }
    response
}

/// As gRPC over HTTP/2 wants a *Status-Message*.
fn percent_encoded(text: &str) -> String {
    let encoded = |byte| match byte {
        b' '..=b'~' if byte != b'%' => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    text.bytes().map(encoded).collect()
}
