//! What a route's settings say about a request, and to the world.

use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{Extensions, HeaderMap, HeaderName, Request, StatusCode};
use serde_json::{Value, json};
use tower_layer::Layer;

use super::answer::{Answer, Refusal};
use super::handle::Handle;
use super::layer::IdempotencyLayer;
use super::service::Idempotency;
use super::settle::Settle;
use crate::leased::lease::Lease;
use crate::operation::key::{Key, Scope};
use crate::operation::{Class, OnLapse, Operation};
use crate::protocol::answer::InProgress;
use crate::transactional::Waiting;

/// The shortest and the longest pause that a duplicate of a request in progress is told.
pub(crate) const PAUSE_MIN: Duration = Duration::from_secs(1);
pub(crate) const PAUSE_MAX: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Transactional,
    Leased(Lease),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Presence {
    Required,
    Optional,
    Off,
}

/// What becomes of a request before its key is read.
pub(crate) enum Course {
    /// To the handler, untouched.
    Pass,
    Refuse(Refusal),
    Serve,
}

impl<S> Layer<S> for IdempotencyLayer {
    type Service = Idempotency<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Idempotency::new(inner, self.clone().into())
    }
}

impl IdempotencyLayer {
    /// What the layer has to do with this request. An upgrade is a GET or CONNECT, which it never covers.
    pub(crate) fn course_of<B>(&self, request: &Request<B>) -> Course {
        if !self.methods.contains(request.method()) {
            return Course::Pass;
        }
        let refusal = if Handle::is_claimed(request.extensions()) {
            // To pass would be to ignore this one's rules: a secret would be stored, a replay not asked about.
            let detail = "The service's operators must look.";
            Refusal::new(Answer::LayeredTwice, detail)
        } else if !self.grpc && is_grpc(request.headers()) {
            let detail = "An outcome that comes in trailers cannot be stored.";
            Refusal::new(Answer::GrpcUnsupported, detail)
        } else {
            return Course::Serve;
        };
        if self.observe {
            let class = self.class_of(request.extensions());
            self.once.telemetry.of(&class).http_observed(refusal.answer.code());
            return Course::Pass;
        }
        if refusal.answer == Answer::LayeredTwice {
            tracing::error!(
                "an idempotency layer is inside of another one: put it on a router or on its routes"
            );
        }
        Course::Refuse(refusal)
    }

    pub(crate) fn is_transactional(&self) -> bool {
        self.mode == Mode::Transactional
    }

    /// What becomes of a key by the route's rule, when the handler does not say.
    pub(crate) fn settle(&self, status: StatusCode, used: bool) -> Settle {
        let unknown = status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT;
        match self.final_statuses.settle(status, used) {
            Settle::Release if unknown && self.holds_unknown() => Settle::Lapse,
            settle => settle,
        }
    }

    /// Whether a handler that ended without an outcome leaves its key to an operator: its outside call
    /// may have been made.
    pub(crate) fn holds_unknown(&self) -> bool {
        !self.is_transactional() && self.policy.on_lapse == OnLapse::Hold
    }

    /// When to ask again for the response of a request in progress. Soon at first; then after about as long as its
    /// claim is known to live, since its begin or its last renewal; never after its lease.
    pub(crate) fn pause_for(&self, wait: &InProgress) -> Duration {
        let (Mode::Leased(lease), Some(rest)) = (self.mode, wait.lease_remaining()) else {
            return PAUSE_MIN;
        };
        lease.length.saturating_sub(rest).clamp(PAUSE_MIN, PAUSE_MAX).min(wait.retry_after())
    }

    pub(crate) fn response_limit(&self) -> u64 {
        u64::from(self.once.response_bytes_max)
    }

    /// The operation a request names, or why it may not run. Where keys are ignored too: what remotes are handed
    /// is made from it.
    pub(crate) fn name(&self, request: &Parts) -> Result<Option<Operation>, Refusal> {
        let key = self.key_rules.key_in(&request.headers);
        if self.presence == Presence::Off {
            let named = key.ok().flatten().zip((self.scope)(request));
            return Ok(named.map(|(key, scope)| self.operation(scope, key, &request.extensions)));
        }
        let Some(key) = key.map_err(|detail| Refusal::key_malformed(&detail))? else {
            if self.presence == Presence::Optional {
                return Ok(None);
            }
            return Err(Refusal::key_missing(&self.key_rules.header));
        };
        let Some(scope) = (self.scope)(request) else {
            tracing::error!("no idempotency scope in a request: does authentication come first?");
            let detail =
                "The service could not tell whose request this is; its operators must look.";
            return Err(Refusal::new(Answer::NoScope, detail));
        };
        Ok(Some(self.operation(scope, key, &request.extensions)))
    }

    /// Without a fingerprint: the request has not been read.
    fn operation(&self, scope: Scope, key: Key, extensions: &Extensions) -> Operation {
        Operation {
            scope,
            key,
            fingerprint: None,
            policy: Some(self.policy),
            lock_replay: self.lock_replay && !self.observe,
            secret: self.secret,
            optimistic: self.optimistic && !self.observe,
            class: Some(self.class_of(extensions)),
            value: 0,
            observed: self.observe,
            mode: None,
        }
    }

    /// What a request is counted under.
    pub(crate) fn class_of(&self, extensions: &Extensions) -> Class {
        let class = self.class.clone().or_else(|| matched_path(extensions));
        class.unwrap_or_else(|| self.once.class.clone())
    }

    /// A request's wait for others with its key. A layer that only observes does not wait.
    pub(crate) fn waiting(&self, op: &Operation) -> Waiting {
        let bound = if self.observe { Duration::ZERO } else { self.policy.wait };
        self.once.lines.wait(&self.pool, bound, self.once.counts(op)).with_places(&self.waiters)
    }

    pub(crate) fn too_large(&self) -> Refusal {
        let detail = format!("A body takes up to {} bytes here.", self.request_bytes_max);
        Refusal::new(Answer::RequestTooLarge, detail)
    }

    /// The request headers a browser must be allowed to send: for
    /// `CorsLayer::allow_headers`, beside your own.
    #[must_use]
    pub fn request_headers(&self) -> Vec<HeaderName> {
        vec![self.key_rules.header.clone()]
    }

    /// The response headers a browser must be shown: for `CorsLayer::expose_headers`, beside your own.
    #[must_use]
    pub fn response_headers(&self) -> Vec<HeaderName> {
        vec![self.replay_marker.clone(), http::header::RETRY_AFTER]
    }

    /// The route's settings as JSON, to be published: the IETF draft wants a resource to say
    /// which keys it takes and for how long it remembers them. Serve it, or put it into an OpenAPI document.
    ///
    /// ```
    /// # fn example(idempotency: &pgonce::web::IdempotencyLayer) {
    /// let published = idempotency.specification();
    /// assert_eq!(published["retention_seconds"], 86_400);
    /// # }
    /// ```
    #[must_use]
    pub fn specification(&self) -> Value {
        json!({
            "header": self.key_rules.header.as_str(),
            "key": match self.presence {
                Presence::Required => "required",
                Presence::Optional => "optional",
                Presence::Off => "ignored",
            },
            "key_syntax": if self.key_rules.strict { "RFC 9651 string" } else { "RFC 9651 string or bare text" },
            "key_bytes_max": 255,
            "methods": self.methods.iter().map(http::Method::as_str).collect::<Vec<_>>(),
            "retention_seconds": self.policy.retention.as_secs(),
            "failed_retention_seconds": self.policy.failed_retention.map(|retention| retention.as_secs()),
            "fingerprint": self.fingerprint.recipe(),
            "request_bytes_max": self.request_bytes_max,
            "replay_marker": self.replay_marker.as_str(),
            "replayed_headers": self.kept_headers.names().collect::<Vec<_>>(),
            "docs": &*self.docs,
        })
    }
}

#[cfg(feature = "axum")]
fn matched_path(extensions: &Extensions) -> Option<Class> {
    extensions.get::<axum::extract::MatchedPath>().and_then(|path| Class::new(path.as_str()).ok())
}

#[cfg(not(feature = "axum"))]
fn matched_path(_: &Extensions) -> Option<Class> {
    None
}

fn is_grpc(headers: &HeaderMap) -> bool {
    const GRPC: &[u8] = b"application/grpc";
    let content_type = headers.get(CONTENT_TYPE).map(|value| value.as_bytes().trim_ascii());
    let start = content_type.and_then(|value| value.get(..GRPC.len()));
    start.is_some_and(|start| start.eq_ignore_ascii_case(GRPC))
}
