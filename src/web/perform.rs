//! Runs the handler and decides what becomes of its response.

use std::any::Any;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::Poll;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::BodyExt;
use tower_service::Service;

use super::answer::{Answer, Refusal};
use super::body::Buffered;
use super::handle::{Handle, Left};
use super::layer::IdempotencyLayer;
use super::service::Ended;
use super::settle::{Secret, Settle};
use crate::operation::response::Response as Stored;

pub(crate) type Panic = Box<dyn Any + Send>;

/// What came of the handler.
#[allow(clippy::large_enum_variant, reason = "the large one is the usual one")]
pub(crate) enum Performed<R, E> {
    Answered(Answered<R>),
    /// The service failed, without a response.
    Failed(E),
    Panicked(Panic),
    /// The response broke off while it was read.
    Unreadable,
}

impl<R, E> Performed<R, E> {
    /// How it ended, for operators. It quotes nothing of the handler's.
    pub(crate) fn ended_as(&self) -> String {
        match self {
            Self::Answered(answered) => {
                format!("the handler answered {}", answered.response.status().as_u16())
            }
            Self::Failed(_) => "the service failed".to_owned(),
            Self::Panicked(_) => "the handler panicked".to_owned(),
            Self::Unreadable => "the handler's response broke off".to_owned(),
        }
    }

    /// The handler's answer, or how the request ends without one. `kept`: somebody still holds its
    /// transaction, so nothing can be committed.
    #[allow(clippy::result_large_err, reason = "moved once, into the answer")]
    pub(crate) fn answered(self, kept: bool) -> Result<Answered<R>, Ended<R, E>> {
        match self {
            Self::Answered(_) if kept => {
                tracing::error!(
                    "a handler answered and kept its transaction; nothing was committed"
                );
                let detail = "The service's operators must look.";
                Err(Ended::Refused(Refusal::new(Answer::TransactionLost, detail)))
            }
            Self::Answered(answered) => Ok(answered),
            Self::Failed(error) => Err(Ended::Failed(error)),
            Self::Panicked(panic) => Err(Ended::Panicked(panic)),
            Self::Unreadable => {
                Err(Ended::Refused(Refusal::new(Answer::ResponseUnreadable, "Nothing was kept.")))
            }
        }
    }
}

pub(crate) struct Answered<R> {
    /// For the client.
    pub(crate) response: Response<Buffered<R>>,
    pub(crate) settle: Settle,
    /// For the table. Made only when it is wanted.
    pub(crate) stored: Stored,
}

/// Calls the handler, and reads its response if that is to be stored. `keyed`: whether there is a key
/// to store it under.
pub(crate) async fn perform<S, B, R>(
    config: &IdempotencyLayer,
    inner: &mut S,
    mut request: Request<Buffered<B>>,
    handle: &Handle,
    keyed: bool,
) -> (Performed<R, S::Error>, Left)
where
    S: Service<Request<Buffered<B>>, Response = Response<R>>,
    R: Body,
{
    request.extensions_mut().insert(handle.clone());
    // Called inside, because the call itself may panic too.
    let response = match caught(async { inner.call(request).await }).await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => return (Performed::Failed(error), handle.finish()),
        Err(panic) => return (Performed::Panicked(panic), handle.finish()),
    };
    let left = handle.finish();
    let performed = match caught(keep(config, response, left.used, keyed)).await {
        Ok(Ok(answered)) => Performed::Answered(answered),
        Ok(Err(Unreadable)) => Performed::Unreadable,
        Err(panic) => Performed::Panicked(panic),
    };
    (performed, left)
}

struct Unreadable;

/// The response for the client, what becomes of the key, and what to store. Read are only bodies that say how long
/// they are and are short enough; a stream may never end, and is passed on and stored as *omitted*.
async fn keep<R: Body>(
    config: &IdempotencyLayer,
    response: Response<R>,
    used: bool,
    keyed: bool,
) -> Result<Answered<R>, Unreadable> {
    let (parts, body) = response.into_parts();
    let said = match parts.extensions.get::<Settle>() {
        // No outcome, and no replay could send it.
        _ if parts.status.is_informational() => Some(Settle::Release),
        said => said.copied(),
    };
    let classify = config.classify.as_ref().filter(|_| said.is_none());
    let settle = |body: Option<&[u8]>| {
        let classified = classify.and_then(|classify| classify(parts.status, &parts.headers, body));
        said.or(classified).unwrap_or_else(|| config.settle(parts.status, used))
    };
    let code = i32::from(parts.status.as_u16());
    let omitted = Stored::empty().with_code(code).secret();
    // A part of a body and "you have it already" answer one request's headers, not the operation.
    let whole = !matches!(parts.status, StatusCode::PARTIAL_CONTENT | StatusCode::NOT_MODIFIED);
    let secret = config.secret || parts.extensions.get::<Secret>().is_some();
    let may_store = keyed && whole && !secret;
    let stores = |settle| may_store && matches!(settle, Settle::Complete | Settle::Fail);
    let short = body.size_hint().exact().is_some_and(|size| size <= config.response_limit());
    if !short || classify.is_none() && !stores(settle(None)) {
        let settle = settle(None);
        let response = Response::from_parts(parts, Buffered::untouched(body));
        return Ok(Answered { response, settle, stored: omitted });
    }
    let collected = body.collect().await.map_err(|_| Unreadable)?;
    let trailers = collected.trailers().cloned();
    let bytes = collected.to_bytes();
    let settle = settle(Some(&bytes));
    let stored = match trailers {
        None if stores(settle) => store(config, &parts.headers, &bytes).with_code(code),
        _ => omitted, // what trailers say would be missing
    };
    let response = Response::from_parts(parts, Buffered::whole(bytes, trailers));
    Ok(Answered { response, settle, stored })
}

fn store(config: &IdempotencyLayer, headers: &HeaderMap, body: &Bytes) -> Stored {
    if headers.contains_key(http::header::SET_COOKIE) {
        tracing::warn!("a response under an idempotency key sets a cookie; a replay will not");
    }
    Stored::bytes(body.to_vec()).with_headers(config.kept_headers.block(headers))
}

/// A future's output, or the panic it ended in.
pub(crate) async fn caught<F: Future>(future: F) -> Result<F::Output, Panic> {
    let mut future = pin!(future);
    poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
        Ok(poll) => poll.map(Ok),
        Err(panic) => Poll::Ready(Err(panic)),
    })
    .await
}
