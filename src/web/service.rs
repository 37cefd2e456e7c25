//! What happens to a request, from its key to its answer.

use std::panic::resume_unwind;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Request, Response};
use http_body::Body;
use tower_service::Service;
use tracing::{Instrument, Span};

use super::answer::{Answer, Refusal, takes_json};
use super::body::{BoxError, Buffered, Read, read};
use super::layer::IdempotencyLayer;
use super::perform::Panic;
use super::rollout::Settings;
use super::route::{Course, Mode, Presence};
use super::unkeyed::{Unkeyed, unkeyed};
use super::{leased, replay, transactional};
use crate::operation::response::Response as Stored;
use crate::protocol::answer::Begin;
use crate::telemetry::spans::span;

/// The service that [`IdempotencyLayer`] wraps around a handler.
#[derive(Debug, Clone)]
pub struct Idempotency<S> {
    inner: S,
    settings: Arc<Settings>,
}

/// How a request ended.
pub(crate) enum Ended<R, E> {
    /// With the handler's response.
    Answered(Response<Buffered<R>>, Answer),
    /// With a stored response.
    Replayed(Response<Bytes>),
    /// With an answer of the layer's own.
    Refused(Refusal),
    /// With the operation's answer to begin, still to be put into words.
    Told(Begin),
    /// With an error of the service's own.
    Failed(E),
    Panicked(Panic),
}

impl<S> Idempotency<S> {
    pub(crate) fn new(inner: S, config: Arc<IdempotencyLayer>) -> Self {
        Self { inner, settings: Arc::new(Settings::new(config)) }
    }
}

impl<S, B, R> Service<Request<B>> for Idempotency<S>
where
    S: Service<Request<Buffered<B>>, Response = Response<R>> + Clone + Send + 'static,
    S::Error: Send + 'static,
    S::Future: Send,
    B: Body + Send + 'static,
    B::Error: Into<BoxError>,
    R: Body + Send + 'static,
    R::Data: Send,
{
    type Response = Response<Buffered<R>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        // The service that was polled ready is the one to call; the clone takes its place.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let config = self.settings.of(request.extensions());
        let refusal = match config.course_of(&request) {
            Course::Serve => None,
            Course::Refuse(refusal) => Some(refusal),
            Course::Pass => {
                let response = inner.call(request.map(Buffered::untouched));
                return Box::pin(async {
                    response.await.map(|response| response.map(Buffered::untouched))
                });
            }
        };
        Box::pin(respond(config, inner, request, refusal))
    }
}

async fn respond<S, B, R>(
    config: Arc<IdempotencyLayer>,
    inner: S,
    request: Request<B>,
    refusal: Option<Refusal>,
) -> Result<Response<Buffered<R>>, S::Error>
where
    S: Service<Request<Buffered<B>>, Response = Response<R>> + Send + 'static,
    S::Error: Send + 'static,
    S::Future: Send,
    B: Body + Send + 'static,
    B::Error: Into<BoxError>,
    R: Body + Send + 'static,
    R::Data: Send,
{
    let json = takes_json(request.headers());
    let has_key = request.headers().contains_key(&config.key_rules.header);
    let ignored = has_key && config.presence == Presence::Off;
    let counts = config.once.telemetry.of(&config.class_of(request.extensions()));
    // The handler's own log lines are in it too.
    let span = span!("idempotency");
    let ended = match refusal {
        Some(refusal) => Ended::Refused(refusal),
        None => decide(&config, inner, request).instrument(span.clone()).await,
    };
    let (mut response, answer) = match ended {
        Ended::Answered(response, answer) => (response, answer),
        Ended::Replayed(response) => (whole(response), Answer::Replayed),
        Ended::Refused(mut refusal) => {
            if !has_key || ignored {
                refusal = refusal.without_key();
            }
            // The handler has run, and a remote that it has called would take a retry for another request.
            if !has_key && !config.is_transactional() {
                refusal = refusal.not_retryable();
            }
            let answer = refusal.answer;
            (whole(refusal.into_response(&config.docs, json)), answer)
        }
        Ended::Told(_) => unreachable!("BUG: decide puts it into words"),
        Ended::Failed(error) => return Err(error),
        Ended::Panicked(panic) => resume_unwind(panic),
    };
    counts.http_answer(answer.code());
    span.record("answer", answer.code());
    span.in_scope(|| tracing::debug!(answer = answer.code(), "answered"));
    // Run without a claim here, and under one of a layer inside.
    if matches!(answer, Answer::Unkeyed | Answer::Unprotected)
        && response.extensions().get::<Answer>().is_some()
    {
        return Ok(response);
    }
    response.extensions_mut().insert(answer);
    response.headers_mut().remove(&config.replay_marker);
    if matches!(answer, Answer::Replayed | Answer::Omitted) {
        let marker = HeaderValue::from_static("true");
        response.headers_mut().insert(config.replay_marker.clone(), marker);
    }
    if ignored {
        let value = HeaderValue::from_static("ignored");
        response.headers_mut().insert("idempotency-status", value);
    }
    Ok(response)
}

fn whole<R>(response: Response<Bytes>) -> Response<Buffered<R>> {
    response.map(|bytes| Buffered::whole(bytes, None))
}

/// Everything up to the words of the answer.
async fn decide<S, B, R>(
    config: &Arc<IdempotencyLayer>,
    inner: S,
    request: Request<B>,
) -> Ended<R, S::Error>
where
    S: Service<Request<Buffered<B>>, Response = Response<R>> + Send + 'static,
    S::Error: Send + 'static,
    S::Future: Send,
    B: Body + Send + 'static,
    B::Error: Into<BoxError>,
    R: Body + Send + 'static,
    R::Data: Send,
{
    let (parts, body) = request.into_parts();
    if !parts.headers.contains_key(&config.key_rules.header) && config.presence != Presence::Off {
        let class = config.class_of(&parts.extensions);
        config.once.telemetry.of(&class).unkeyed();
    }
    let mut op = match config.name(&parts) {
        Ok(op) => op,
        Err(refusal) if config.observe => {
            let class = config.class_of(&parts.extensions);
            config.once.telemetry.of(&class).http_observed(refusal.answer.code());
            None
        }
        Err(refusal) => return Ended::Refused(refusal),
    };
    let mut begins = op.is_some() && config.presence != Presence::Off;
    if !begins && !config.is_transactional() {
        let request = Request::from_parts(parts, Buffered::untouched(body));
        return unkeyed(config, inner, request, op, Unkeyed::USUAL).await;
    }
    // Read before any connection is taken, and before the key is begun: half a request is none.
    let body = match read(body, config.request_bytes_max).await {
        Read::Whole(bytes, trailers) => {
            if begins && let Some(op) = &mut op {
                op.fingerprint = Some(config.fingerprint.of(&parts, &bytes));
                op.value = config.value.as_ref().map_or(0, |value| value(&parts, &bytes));
            }
            Buffered::whole(bytes, trailers)
        }
        Read::TooLarge(body) if config.observe => {
            let class = config.class_of(&parts.extensions);
            config.once.telemetry.of(&class).http_observed(Answer::RequestTooLarge.code());
            begins = false;
            body
        }
        // Without a key too: a connection must not wait for a client that sends slowly.
        Read::TooLarge(_) => return Ended::Refused(config.too_large()),
        Read::CutOff => {
            let detail = "The body is longer than the service takes.";
            return Ended::Refused(Refusal::new(Answer::RequestTooLarge, detail));
        }
        Read::Broken => {
            let detail = "The request's body ended before its end.";
            return Ended::Refused(Refusal::new(Answer::RequestUnreadable, detail));
        }
    };
    let counts = op.as_ref().map(|op| config.once.counts(op));
    if let (Some(op), Some(counts)) = (&op, &counts) {
        match begins {
            true => counts.begun(&Span::current(), op),
            false => counts.name(&Span::current(), op.scope(), op.key()),
        }
    }
    // Only who asks for a second look pays for a copy.
    let asked_by = config.authorize_replay.as_ref().map(|_| parts.clone());
    let request = Request::from_parts(parts, body);
    let ended = match (&op, &config.mode) {
        (Some(op), Mode::Transactional) if begins => {
            transactional::respond(config, inner, request, op).await
        }
        (Some(op), Mode::Leased(lease)) if begins => {
            leased::respond(config, inner, request, op, *lease).await
        }
        _ => unkeyed(config, inner, request, op.clone(), Unkeyed::USUAL).await,
    };
    match ended {
        Ended::Told(begin) => {
            if let (Some(op), Some(counts)) = (&op, &counts) {
                begin.count(counts, op, &Span::none());
            }
            tell(config, begin, asked_by).await
        }
        ended => ended,
    }
}

pub(crate) fn answer_to(begin: &Begin) -> Answer {
    match begin {
        Begin::Started(_) => Answer::Performed,
        Begin::Replay(replay) if replay.response().is_omitted() => Answer::Omitted,
        Begin::Replay(_) => Answer::Replayed,
        Begin::InProgress(_) => Answer::InProgress,
        Begin::Mismatch(_) => Answer::Mismatch,
        Begin::Held(_) => Answer::Held,
    }
}

/// Puts an answer to begin into words.
async fn tell<R, E>(
    config: &IdempotencyLayer,
    begin: Begin,
    asked_by: Option<Parts>,
) -> Ended<R, E> {
    Ended::Refused(match begin {
        Begin::Replay(replay) => return replay_to(config, replay.into_response(), asked_by).await,
        Begin::InProgress(wait) => Refusal::in_progress(config.pause_for(&wait)),
        Begin::Mismatch(_) => Refusal::mismatch(),
        Begin::Held(_) => Refusal::held(),
        Begin::Started(_) => unreachable!("BUG: what has started is run"),
    })
}

async fn replay_to<R, E>(
    config: &IdempotencyLayer,
    stored: Stored,
    asked_by: Option<Parts>,
) -> Ended<R, E> {
    if let (Some(authorize), Some(parts)) = (&config.authorize_replay, asked_by)
        && let Err(status) = authorize(parts).await
    {
        let detail = "The operation is done; its response is not for this caller now.";
        return Ended::Refused(Refusal::new(Answer::ReplayRefused, detail).status(status));
    }
    let replayed = if stored.is_omitted() {
        replay::status(&stored).map(|status| Ended::Refused(Refusal::omitted(status)))
    } else {
        replay::replayed(stored).map(Ended::Replayed)
    };
    replayed.unwrap_or_else(|error| {
        tracing::error!(%error, "a stored response cannot be replayed");
        Ended::Refused(Refusal::unasked(&error))
    })
}
