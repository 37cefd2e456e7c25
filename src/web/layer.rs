//! The layer: a route's settings, put together by a builder.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use http::{HeaderName, Method, StatusCode};
use sqlx::PgPool;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use super::fingerprint::RequestFingerprint;
use super::key::KeyRules;
use super::replay::KeptHeaders;
use super::route::{Mode, Presence};
use super::settle::{Classify, FinalStatuses};
use crate::client::PgOnce;
use crate::error::Result;
use crate::leased::lease::Lease;
use crate::operation::key::Scope;
use crate::operation::limits::check_lease;
use crate::operation::{Class, Policy};

type ScopeFn = Arc<dyn Fn(&Parts) -> Option<Scope> + Send + Sync>;
type Authorized = Pin<Box<dyn Future<Output = Result<(), StatusCode>> + Send>>;
type ValueFn = Arc<dyn Fn(&Parts, &[u8]) -> u64 + Send + Sync>;
type AuthorizeFn = Arc<dyn Fn(Parts) -> Authorized + Send + Sync>;

/// A [`tower::Layer`](tower_layer::Layer) that makes the handlers under it idempotent: a request with a key that was
/// answered before gets the same answer, and the handler does not run again.
///
/// Transactional unless [`leased`](IdempotencyLayer::leased), and with a key required. Every method below
/// returns a changed copy, so one layer made at start-up is the base of every route's:
///
/// ```
/// # fn example(pool: sqlx::PgPool) -> pgonce::Result<()> {
/// use std::time::Duration;
/// use http::request::Parts;
/// use pgonce::{Lease, PgOnce, Scope, web::IdempotencyLayer};
/// # #[derive(Clone)] struct Tenant(String);
///
/// let idempotency = IdempotencyLayer::new(PgOnce::new(), pool, |request: &Parts| {
///     let Tenant(name) = request.extensions.get()?; // put there by the authentication, outside
///     Some(Scope::of([name, "payments.create"]))
/// });
/// let leased = idempotency.clone().leased(Lease::new(Duration::from_secs(30))?)?;
/// # Ok(())
/// # }
/// ```
///
/// A layer without a scope cannot be made:
///
/// ```compile_fail,E0061
/// # fn example(pool: sqlx::PgPool) {
/// let idempotency = pgonce::web::IdempotencyLayer::new(pgonce::PgOnce::new(), pool);
/// # }
/// ```
#[derive(Clone)]
pub struct IdempotencyLayer {
    pub(crate) once: PgOnce,
    pub(crate) pool: PgPool,
    pub(crate) scope: ScopeFn,
    pub(crate) mode: Mode,
    pub(crate) presence: Presence,
    pub(crate) observe: bool,
    pub(crate) fail_open: bool,
    /// Inside of a [`GrpcLayer`](super::GrpcLayer).
    pub(crate) grpc: bool,
    pub(crate) key_rules: KeyRules,
    pub(crate) methods: Vec<Method>,
    /// How its keys are treated.
    pub(crate) policy: Policy,
    pub(crate) waiters: Arc<Semaphore>,
    pub(crate) lock_replay: bool,
    pub(crate) optimistic: bool,
    pub(crate) fingerprint: RequestFingerprint,
    pub(crate) request_bytes_max: usize,
    pub(crate) final_statuses: FinalStatuses,
    pub(crate) classify: Option<Classify>,
    pub(crate) kept_headers: KeptHeaders,
    pub(crate) replay_marker: HeaderName,
    pub(crate) secret: bool,
    pub(crate) unused_tx_refused: bool,
    pub(crate) authorize_replay: Option<AuthorizeFn>,
    pub(crate) docs: Arc<str>,
    pub(crate) class: Option<Class>,
    pub(crate) value: Option<ValueFn>,
    pub(crate) tasks: TaskTracker,
}

const RENEWED_FOR_DEFAULT: Duration = Duration::from_secs(600);
const REQUEST_BYTES_MAX_DEFAULT: usize = 1024 * 1024;
const WAITERS_MAX_DEFAULT: usize = 16;
pub(crate) const REPLAY_MARKER: HeaderName = HeaderName::from_static("idempotent-replayed");
pub(crate) const DOCS: &str = "https://docs.rs/pgonce/latest/pgonce/_docs/http/index.html";

impl IdempotencyLayer {
    /// A layer over this pool, for the scope that `scope` finds in a request: its authenticated tenant or
    /// user, and the operation. The same key in another scope is another operation.
    ///
    /// Build it with [`Scope::of`] from the tenant and the operation's name or the matched route, never from the
    /// client's word alone, nor from the request's path: a client can write one path in several ways.
    ///
    /// `None`: the request has no known sender. It is answered with 500, because authentication has to come first: put
    /// this layer inside of it.
    #[must_use]
    pub fn new<F>(once: PgOnce, pool: PgPool, scope: F) -> Self
    where
        F: Fn(&Parts) -> Option<Scope> + Send + Sync + 'static,
    {
        Self {
            policy: once.policy,
            once,
            pool,
            scope: Arc::new(scope),
            mode: Mode::Transactional,
            presence: Presence::Required,
            observe: false,
            fail_open: false,
            grpc: false,
            key_rules: KeyRules::default(),
            methods: vec![Method::POST, Method::PATCH],
            waiters: Arc::new(Semaphore::new(WAITERS_MAX_DEFAULT)),
            lock_replay: false,
            optimistic: false,
            fingerprint: RequestFingerprint::new(),
            request_bytes_max: REQUEST_BYTES_MAX_DEFAULT,
            final_statuses: FinalStatuses::Default { server_errors: false },
            classify: None,
            kept_headers: KeptHeaders::default(),
            replay_marker: REPLAY_MARKER,
            secret: false,
            unused_tx_refused: false,
            authorize_replay: None,
            docs: DOCS.into(),
            class: None,
            value: None,
            tasks: TaskTracker::new(),
        }
    }

    /// For handlers that call other services: the claim is committed before the handler runs, and
    /// completed after it. The handler runs in a task, which survives a client that hangs up, and
    /// takes no connection of the layer's.
    ///
    /// The claim is renewed while the handler runs, for up to ten minutes unless
    /// [`renewed_for`](Lease::renewed_for) is set.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) when the lease is longer than the retention.
    pub fn leased(mut self, mut lease: Lease) -> Result<Self> {
        check_lease(lease.length, self.policy.retention)?;
        lease.renewed_for.get_or_insert(RENEWED_FOR_DEFAULT);
        self.mode = Mode::Leased(lease);
        Ok(self)
    }

    /// Requests without a key are refused with 400. The default.
    #[must_use]
    pub fn required(mut self) -> Self {
        self.presence = Presence::Required;
        self
    }

    /// Requests without a key run unprotected; what they write through the layer is still one
    /// transaction. A key that is there must be well formed.
    #[must_use]
    pub fn optional(mut self) -> Self {
        self.presence = Presence::Optional;
        self
    }

    /// Keys are ignored; a response to a request with one says `Idempotency-Status: ignored`. Keys for remotes
    /// are still derived from it.
    #[must_use]
    pub fn off(mut self) -> Self {
        self.presence = Presence::Off;
        self
    }

    /// Never refuses and never replays: keys are begun and completed, and what would have been
    /// answered is counted (metric `pgonce.http.observed`). For trying settings on live traffic.
    #[must_use]
    pub fn observe(mut self) -> Self {
        self.observe = true;
        self
    }

    /// Runs the handler unprotected when the database cannot be asked, with a warning in the log and a
    /// count. Without it such requests are refused with 503 or 500, and nothing runs. A key whose row is
    /// corrupt is refused in any case: it may be done.
    #[must_use]
    pub fn fail_open(mut self) -> Self {
        self.fail_open = true;
        self
    }

    /// The header that carries the key; `Idempotency-Key` by default.
    #[must_use]
    pub fn header(mut self, name: HeaderName) -> Self {
        self.key_rules.header = name;
        self
    }

    /// Takes a key only as a string in quotes, as RFC 9651 and the IETF draft write it. Otherwise
    /// `"abc"` and `abc` name the same key.
    #[must_use]
    pub fn strict_keys(mut self) -> Self {
        self.key_rules.strict = true;
        self
    }

    /// Refuses keys that look easy to guess: fewer bits than this, by the frequencies of their
    /// characters. A UUID has about 130, `order-17` has 24. Zero by default.
    #[must_use]
    pub fn key_entropy_min(mut self, bits: f64) -> Self {
        self.key_rules.entropy_min = bits;
        self
    }

    /// The methods that are covered; POST and PATCH by default. Others pass untouched; so do GET, HEAD,
    /// OPTIONS, TRACE and CONNECT in any case, and with them every upgrade of a connection.
    #[must_use]
    pub fn methods(mut self, methods: impl IntoIterator<Item = Method>) -> Self {
        let passing = [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE, Method::CONNECT];
        self.methods = methods.into_iter().filter(|method| !passing.contains(method)).collect();
        self
    }

    /// How long keys are remembered, how long a duplicate of a request in progress waits for its answer, and what happens
    /// to a leased key whose holder is gone; [the client's](PgOnce::policy) policy unless set.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) when the retention is shorter than the lease of a
    /// [leased](IdempotencyLayer::leased) route.
    pub fn policy(mut self, policy: Policy) -> Result<Self> {
        if let Mode::Leased(lease) = self.mode {
            check_lease(lease.length, policy.retention)?;
        }
        self.policy = policy;
        Ok(self)
    }

    /// How many requests may wait at the same time; 16 by default. Further ones get their 409 at once. The
    /// limit is one for this copy of the layer and all copies of it.
    #[must_use]
    pub fn waiters_max(mut self, waiters: usize) -> Self {
        self.waiters = Arc::new(Semaphore::new(waiters.min(Semaphore::MAX_PERMITS)));
        self
    }

    /// Lets transactional routes assume that a key is new, as [`Operation::optimistic`](crate::Operation::optimistic).
    /// The handler then also runs for a key that is finished, held, claimed, or bound to another request; what it has
    /// written through its transaction is rolled back, and the answer is the same as without this. It loses where
    /// many requests are retries, where clients double-click, and where a handler is costly or calls other services. A
    /// failure that the handler wants kept is not kept at SERIALIZABLE.
    #[must_use]
    pub fn optimistic(mut self) -> Self {
        self.optimistic = true;
        self
    }

    /// As [`Operation::lock_replay`](crate::Operation::lock_replay).
    #[must_use]
    pub fn lock_replay(mut self) -> Self {
        self.lock_replay = true;
        self
    }

    /// Which parts of a request its key is bound to.
    #[must_use]
    pub fn fingerprint(mut self, fingerprint: RequestFingerprint) -> Self {
        self.fingerprint = fingerprint;
        self
    }

    /// The longest request body under a key, in bytes; 1 MiB by default. Longer ones are refused with
    /// 413. It is read into memory as a whole, and axum's own limit does not apply here.
    #[must_use]
    pub fn request_bytes_max(mut self, bytes: usize) -> Self {
        self.request_bytes_max = bytes;
        self
    }

    /// The longest response that is stored, as [`PgOnce::response_bytes_max`].
    #[must_use]
    pub fn response_bytes_max(mut self, bytes: u32) -> Self {
        self.once = self.once.response_bytes_max(bytes);
        self
    }

    /// Stores and replays one more response header. By default these are kept: `Content-Type`,
    /// `-Encoding`, `-Language`, `-Location` and `-Disposition`, `Location`, `ETag`, `Last-Modified`, `Link`.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for one that must not be replayed: cookies and
    /// credentials, hop-by-hop headers, `Date`, lengths, request ids, rate limits, CORS.
    pub fn keep_header(mut self, name: HeaderName) -> Result<Self> {
        self.kept_headers.add(name)?;
        Ok(self)
    }

    /// The header that marks a replay with `true`; `Idempotent-Replayed` by default.
    #[must_use]
    pub fn replay_marker(mut self, name: HeaderName) -> Self {
        self.replay_marker = name;
        self
    }

    /// Keeps the responses of these routes out of the table. A retry learns that the operation is done.
    #[must_use]
    pub fn secret(mut self) -> Self {
        self.secret = true;
        self
    }

    /// Asks before a stored response is handed out, since the handler's own checks do not run then: the
    /// caller's grant may have been revoked in the meantime. The refusal's status is sent.
    #[must_use]
    pub fn authorize_replay<F, A>(mut self, authorize: F) -> Self
    where
        F: Fn(Parts) -> A + Send + Sync + 'static,
        A: Future<Output = Result<(), StatusCode>> + Send + 'static,
    {
        self.authorize_replay = Some(Arc::new(move |parts| Box::pin(authorize(parts))));
        self
    }

    /// Your own page about idempotency keys: the `docs` of problem answers, and with `#` and the code
    /// their `type`.
    #[must_use]
    pub fn docs(mut self, url: impl AsRef<str>) -> Self {
        self.docs = url.as_ref().into();
        self
    }

    /// What requests are counted under; see [`Class`]. By default their matched path in an axum router, such as
    /// `/payments/{id}`, or else the client's class.
    #[must_use]
    pub fn class(mut self, class: Class) -> Self {
        self.class = Some(class);
        self
    }

    /// What a second run of a request would cost, in the unit of [`PgOnce::value_unit`]: the amount of a payment, say.
    /// Counted for each duplicate that is prevented. The function gets the request's head and its whole body.
    ///
    /// ```no_run
    /// # fn example(layer: pgonce::web::IdempotencyLayer) {
    /// let layer = layer.value(|_, body| {
    ///     let request: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    ///     request.and_then(|request| request["cents"].as_u64()).unwrap_or(0)
    /// });
    /// # }
    /// ```
    #[must_use]
    pub fn value<F>(mut self, value: F) -> Self
    where
        F: Fn(&Parts, &[u8]) -> u64 + Send + Sync + 'static,
    {
        self.value = Some(Arc::new(value));
        self
    }

    /// Waits until no leased handler is at work, in this layer and all its copies. Call it when the
    /// server takes no more requests, before the process ends: handlers whose clients have hung up are
    /// still running.
    ///
    /// # Cancel safety
    /// Cancel safe: dropped, the handlers go on.
    pub async fn drain(&self) {
        self.tasks.close();
        self.tasks.wait().await;
        self.tasks.reopen();
    }
}

impl fmt::Debug for IdempotencyLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotencyLayer")
            .field("mode", &self.mode)
            .field("presence", &self.presence)
            .field("observe", &self.observe)
            .field("header", &self.key_rules.header)
            .field("methods", &self.methods)
            .finish_non_exhaustive()
    }
}
