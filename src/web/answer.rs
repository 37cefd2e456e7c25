//! What the layer did with a request, and its own answers as problem details.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde_json::json;

use crate::error::{Error, ErrorKind};

/// What the layer did with a request. It is in the extensions of every response that went through
/// the layer, and the metric `pgonce.http.answers` counts it.
///
/// ```
/// use pgonce::web::Answer;
/// assert_eq!(Answer::InProgress.code(), "in_progress");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Answer {
    /// The handler ran under the key and its response was kept.
    Performed,
    /// The handler ran under the key, nothing was kept, and the same request may begin again at once. So may another
    /// one with this key, unless a remote may have been called.
    Released,
    /// The handler ran under the key and does not know whether its work took effect
    /// ([`Settle::Lapse`](super::Settle::Lapse)); the claim is left to lapse.
    Unknown,
    /// The handler of a leased route ran under the key and its response was sent, but it could not be
    /// stored; the claim is left to lapse.
    Unstored,
    /// The stored response was sent.
    Replayed,
    /// The operation is done, but its response was not kept.
    Omitted,
    /// Another request with this key is being worked on.
    InProgress,
    /// The key belongs to another request.
    Mismatch,
    /// The key waits for an operator.
    Held,
    /// A key is required and there is none.
    KeyMissing,
    /// The key's header is malformed.
    KeyMalformed,
    /// The scope function found no scope.
    NoScope,
    /// A layer outside has begun the request's key already.
    LayeredTwice,
    /// The request is gRPC, whose outcome is in trailers that are not stored.
    GrpcUnsupported,
    /// The request's body is over the limit.
    RequestTooLarge,
    /// The request's body could not be read to its end.
    RequestUnreadable,
    /// The replay was refused by [`authorize_replay`](super::IdempotencyLayer::authorize_replay).
    ReplayRefused,
    /// The database could not be asked; nothing ran.
    Unavailable,
    /// The database or the schema refused; nothing ran.
    StoreRefused,
    /// The handler ran, but its work could not be committed; nothing was kept.
    NotCommitted,
    /// The same, and committing it again would be refused again: for example because the handler has
    /// overlooked an error of the database, or a deferred constraint stands against it.
    CommitRefused,
    /// The connection broke during COMMIT; the same key finds out.
    CommitUnknown,
    /// The handler did not give its transaction back, or lost it; its code must be looked at.
    TransactionLost,
    /// The handler of a transactional route answered with a success and had never used its transaction. Given where
    /// the route refuses it ([`refuse_unused_tx`](super::IdempotencyLayer::refuse_unused_tx)); otherwise counted as
    /// observed (metric `pgonce.http.observed`), and the response is kept.
    TransactionUnused,
    /// The handler's response broke off while it was read.
    ResponseUnreadable,
    /// The handler ran without a key: there was none, or the route ignores keys.
    Unkeyed,
    /// The handler ran without protection, because the database could not be asked and the route
    /// fails open.
    Unprotected,
}

/// A refusal: one of the layer's own answers. Never stored.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) answer: Answer,
    pub(crate) status: StatusCode,
    pub(crate) detail: String,
    pub(crate) retry_after: Option<Duration>,
    /// Whether the same request with the same key may succeed later.
    pub(crate) retryable: bool,
    /// Whether there is a key to send again.
    keyed: bool,
}

/// The pause when nothing says how long it will take.
const SOON: Duration = Duration::from_secs(1);

impl Answer {
    /// All of them.
    pub const ALL: &'static [Self] = &[
        Self::Performed,
        Self::Released,
        Self::Unknown,
        Self::Unstored,
        Self::Replayed,
        Self::Omitted,
        Self::InProgress,
        Self::Mismatch,
        Self::Held,
        Self::KeyMissing,
        Self::KeyMalformed,
        Self::NoScope,
        Self::LayeredTwice,
        Self::GrpcUnsupported,
        Self::RequestTooLarge,
        Self::RequestUnreadable,
        Self::ReplayRefused,
        Self::Unavailable,
        Self::StoreRefused,
        Self::NotCommitted,
        Self::CommitRefused,
        Self::CommitUnknown,
        Self::TransactionLost,
        Self::TransactionUnused,
        Self::ResponseUnreadable,
        Self::Unkeyed,
        Self::Unprotected,
    ];

    /// A stable word: the problem's `code`, the end of its `type`, and a label for metrics.
    #[must_use]
    pub fn code(self) -> &'static str {
        self.describe().0
    }

    /// The code; a title for people; the status; whether the same request with the same key may
    /// succeed later. For what is not a problem, status and title are of no account.
    fn describe(self) -> (&'static str, &'static str, StatusCode, bool) {
        use StatusCode as S;
        match self {
            Self::Performed => ("performed", "", S::OK, false),
            Self::Released => ("released", "", S::OK, false),
            Self::Unknown => ("unknown", "", S::OK, false),
            Self::Unstored => ("unstored", "", S::OK, false),
            Self::Replayed => ("replayed", "", S::OK, false),
            Self::Unkeyed => ("unkeyed", "", S::OK, false),
            Self::Unprotected => ("unprotected", "", S::OK, false),
            Self::Omitted => {
                ("omitted", "The operation is done; its response was not kept", S::OK, false)
            }
            Self::InProgress => {
                ("in_progress", "A request with this key is in progress", S::CONFLICT, true)
            }
            Self::Mismatch => {
                ("mismatch", "This key belongs to another request", S::UNPROCESSABLE_ENTITY, false)
            }
            Self::Held => ("held", "This key waits for an operator", S::CONFLICT, false),
            Self::KeyMissing => {
                ("key_missing", "An idempotency key is required", S::BAD_REQUEST, false)
            }
            Self::KeyMalformed => {
                ("key_malformed", "The idempotency key is malformed", S::BAD_REQUEST, false)
            }
            Self::NoScope => {
                ("no_scope", "The request belongs to nobody", S::INTERNAL_SERVER_ERROR, false)
            }
            Self::LayeredTwice => (
                "layered_twice",
                "The idempotency layer is there twice",
                S::INTERNAL_SERVER_ERROR,
                false,
            ),
            Self::GrpcUnsupported => {
                ("grpc_unsupported", "gRPC is not supported here", S::UNSUPPORTED_MEDIA_TYPE, false)
            }
            Self::RequestTooLarge => {
                ("request_too_large", "The request is too large", S::PAYLOAD_TOO_LARGE, false)
            }
            Self::RequestUnreadable => {
                ("request_unreadable", "The request could not be read", S::BAD_REQUEST, true)
            }
            Self::ReplayRefused => (
                "replay_refused",
                "The stored response is not for this caller",
                S::FORBIDDEN,
                false,
            ),
            Self::Unavailable => {
                ("unavailable", "The key could not be checked", S::SERVICE_UNAVAILABLE, true)
            }
            Self::StoreRefused => {
                ("store_refused", "The key could not be checked", S::INTERNAL_SERVER_ERROR, false)
            }
            Self::NotCommitted => {
                ("not_committed", "Nothing was kept", S::SERVICE_UNAVAILABLE, true)
            }
            Self::CommitRefused => {
                ("commit_refused", "Nothing was kept", S::INTERNAL_SERVER_ERROR, false)
            }
            Self::CommitUnknown => {
                ("commit_unknown", "The outcome is unknown", S::SERVICE_UNAVAILABLE, true)
            }
            Self::TransactionLost => {
                ("transaction_lost", "The transaction was lost", S::INTERNAL_SERVER_ERROR, false)
            }
            Self::TransactionUnused => {
                ("transaction_unused", "Nothing was kept", S::INTERNAL_SERVER_ERROR, false)
            }
            Self::ResponseUnreadable => {
                ("response_unreadable", "The response broke off", S::INTERNAL_SERVER_ERROR, true)
            }
        }
    }
}

impl Refusal {
    pub(crate) fn new(answer: Answer, detail: impl Into<String>) -> Self {
        let (.., status, retryable) = answer.describe();
        Self { answer, status, detail: detail.into(), retry_after: None, retryable, keyed: true }
    }

    pub(crate) fn status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    pub(crate) fn retry_after(mut self, pause: Duration) -> Self {
        self.retry_after = Some(pause);
        self
    }

    pub(crate) fn key_malformed(detail: &str) -> Self {
        Self::new(Answer::KeyMalformed, format!("{detail}."))
    }

    pub(crate) fn key_missing(header: &HeaderName) -> Self {
        let detail = format!(
            "Send the header {header} with a key of your own for this request, such as a UUID."
        );
        Self::new(Answer::KeyMissing, detail)
    }

    pub(crate) fn in_progress(pause: Duration) -> Self {
        let detail = "Its response is not there yet; wait a moment.";
        Self::new(Answer::InProgress, detail).retry_after(pause)
    }

    pub(crate) fn mismatch() -> Self {
        Self::new(
            Answer::Mismatch,
            "The key was first sent with another request. Send that request, or this one with another key.",
        )
    }

    pub(crate) fn held() -> Self {
        Self::new(
            Answer::Held,
            "It is not known whether the operation took effect; the service's operators decide. Do not \
             send it under another key.",
        )
    }

    pub(crate) fn omitted(status: StatusCode) -> Self {
        let detail =
            "The operation took effect when it was first sent. Do not send it under another key.";
        Self::new(Answer::Omitted, detail).status(status)
    }

    /// Begin failed: nothing ran.
    pub(crate) fn unasked(error: &Error) -> Self {
        if error.is_retryable() {
            Self::new(Answer::Unavailable, "Nothing was done.").retry_after(SOON)
        } else {
            Self::new(Answer::StoreRefused, "Nothing was done. The service's operators must look.")
        }
    }

    /// The handler ran, and then its work could not be committed.
    pub(crate) fn uncommitted(error: &Error) -> Self {
        const LOOK: &str = "The service's operators must look.";
        match error.kind() {
            ErrorKind::CommitUnknown => {
                let detail = "It may be done or not; the key finds out.";
                Self::new(Answer::CommitUnknown, detail).retry_after(SOON)
            }
            // A claim in a transaction is lost only with that transaction: the handler ended it.
            ErrorKind::TransactionLost | ErrorKind::ClaimLost => {
                Self::new(Answer::TransactionLost, LOOK)
            }
            _ if error.is_retryable() => {
                Self::new(Answer::NotCommitted, "Nothing was kept.").retry_after(SOON)
            }
            _ => Self::new(Answer::CommitRefused, format!("Nothing was kept. {LOOK}")),
        }
    }

    /// Sending it again could be once too often.
    pub(crate) fn not_retryable(mut self) -> Self {
        self.retryable = false;
        self.retry_after = None;
        self
    }

    /// There is no key to send again.
    pub(crate) fn without_key(mut self) -> Self {
        self.keyed = false;
        self
    }

    /// The answer as problem details (RFC 9457), or as text for a client that takes no JSON.
    pub(crate) fn into_response(self, docs: &str, json: bool) -> http::Response<Bytes> {
        let (code, title, ..) = self.answer.describe();
        let retryable = self.retryable;
        let again = match self.keyed {
            true => " Send the same request with the same key again.",
            false => " Send the same request again.",
        };
        let detail = self.detail + if retryable { again } else { "" };
        let (content_type, body) = if json {
            let problem = json!({
                "type": format!("{docs}#{code}"),
                "title": title,
                "status": self.status.as_u16(),
                "detail": detail,
                "code": code,
                "retryable": retryable,
                "docs": docs,
            });
            ("application/problem+json", problem.to_string())
        } else {
            let retry = if retryable { "retryable" } else { "not retryable" };
            (
                "text/plain; charset=utf-8",
                format!("{title} ({code}, {retry}). {detail}\n{docs}#{code}\n"),
            )
        };
        // What is stored of an operation that answered with one of these has no body either.
        let bodiless = matches!(self.status.as_u16(), 204 | 205 | 304);
        let body = if bodiless { Bytes::new() } else { Bytes::from(body) };
        let mut response = http::Response::new(body);
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(pause) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(pause.as_secs().max(1)));
        }
        if self.answer == Answer::GrpcUnsupported {
            // What a gRPC client reads: UNIMPLEMENTED, and why.
            headers.insert("grpc-status", HeaderValue::from_static("12"));
            headers.insert("grpc-message", HeaderValue::from_static(title));
        }
        response.extensions_mut().insert(self.answer);
        response
    }
}

/// Whether the client takes JSON or does not say.
pub(crate) fn takes_json(asked: &HeaderMap) -> bool {
    let mut accepted = asked.get_all(ACCEPT).iter().peekable();
    accepted.peek().is_none()
        || accepted.any(|value| {
            let value = value.as_bytes().to_ascii_lowercase();
            let takes = |what: &[u8]| value.windows(what.len()).any(|part| part == what);
            takes(b"json") || takes(b"application/*") || takes(b"*/*")
        })
}
