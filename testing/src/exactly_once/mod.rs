//! Whether a service, an operation or a consumer takes effect once.

mod call;
mod engine;
mod http;
mod report;
mod scenarios;

use std::error::Error;
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use ::http::{HeaderName, Request, Response};
use bytes::Bytes;
use http_body::Body;
use http_body_util::BodyExt;
use serde::Serialize;
use sqlx::{Connection, PgConnection, PgPool};
use tower_service::Service;

pub use call::Attempt;
pub use report::{Fault, Finding, Report, Scenario};

use call::{Answer, Call, Outcome};
use engine::Engine;
use http::Template;

const PATIENCE_DEFAULT: Duration = Duration::from_secs(10);

/// Calls a service, an operation or a consumer as bad networks do, and counts its effects.
///
/// It sends one call, the same call in turn and at once, hangs up at each stage of a call, drops responses, cuts the
/// database connections during calls, and sends another request with a used key. After each, it retries until it gets
/// an answer. Then there must be one effect per key, and one response.
///
/// You say what an effect is: a query that counts them. The request must be acceptable again with each new key.
///
/// # Rows and connections
/// The effects and keys of some hundred calls stay in the database. All connections to the database are cut several
/// times, except the tester's own, so give the test a separate database:
/// [`new_database`](crate::Throwaway::new_database). The role must be allowed to end its backends.
///
/// ```no_run
/// # async fn example(pool: sqlx::PgPool, router: axum::Router) -> Result<(), http::Error> {
/// use axum::body::Body;
/// use http::Request;
/// use pgonce_testing::ExactlyOnce;
///
/// let request = Request::post("/payments")
///     .header("content-type", "application/json")
///     .body(Body::from(r#"{"amount": 100}"#))?;
/// let effects = "select count(*) from payment";
/// ExactlyOnce::new(&pool, effects).request(router, request).await.assert();
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing is called yet"]
pub struct ExactlyOnce {
    pool: PgPool,
    count: String,
    patience: Duration,
    seed: u64,
    header: HeaderName,
    quoted: bool,
    changed: Option<Bytes>,
}

impl ExactlyOnce {
    /// `count` is a query that returns the number of effects as `bigint`. It runs on a separate connection, to the
    /// database of `pool`.
    pub fn new(pool: &PgPool, count: impl Into<String>) -> Self {
        Self {
            pool: pool.clone(),
            count: count.into(),
            patience: PATIENCE_DEFAULT,
            seed: fastrand::u64(..),
            header: HeaderName::from_static("idempotency-key"),
            quoted: false,
            changed: None,
        }
    }

    /// How long retries may take until one is answered: 10 s, unless set. Make it longer than the lease of leased work.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Repeats the random choices of an earlier run: when connections are cut.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// The header of the key: `idempotency-key`, unless set.
    pub fn header(mut self, name: HeaderName) -> Self {
        self.header = name;
        self
    }

    /// Sends keys in quotes, as structured fields write strings.
    pub fn quoted(mut self) -> Self {
        self.quoted = true;
        self
    }

    /// The body of another request, which a used key must refuse. Unless set, the first number of a JSON body is one
    /// more, or its first string is longer. A body of another form gets one more byte.
    pub fn changed(mut self, body: impl Into<Bytes>) -> Self {
        self.changed = Some(body.into());
        self
    }

    /// Calls a tower service, an axum router for example. `request` has no key.
    ///
    /// An answer is a 2xx response. Of 408, 409, 425, 429 and all 5xx responses, and of errors of the service, a caller
    /// tries again. A duplicate among concurrent ones may get the first four or 503. Any other response is a refusal.
    /// Two responses are the same if status and body are.
    ///
    /// # Cancel safety
    /// Dropped, it leaves the rows and keys of the calls so far.
    pub async fn request<S, B, R>(self, service: S, request: Request<B>) -> Report
    where
        S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
        S::Error: Display,
        S::Future: Send,
        B: Body + From<Bytes> + Send + 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
        R: Body + Send + 'static,
        R::Data: Send,
        R::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let (parts, body) = request.into_parts();
        let body = match body.collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => {
                let mut report = Report::new(self.seed);
                report.unusable(format!("the request's body is broken: {}", error.into()));
                return report;
            }
        };
        let request = Request::from_parts(parts, body);
        let changed = self.changed.clone().unwrap_or_else(|| http::changed(request.body()));
        let (header, quoted) = (self.header.clone(), self.quoted);
        let call = http::call(service, Template { request, changed, header, quoted });
        self.run(call, true).await
    }

    /// Calls an operation, for example one that calls `PgOnce::run`.
    ///
    /// `operation` uses the key of the [`Attempt`] as idempotency key. Where [`changed`](Attempt::changed) is set, it
    /// asks for other work, and must fail if the key is used. A caller tries again after an error.
    ///
    /// # Cancel safety
    /// As [`request`](ExactlyOnce::request).
    pub async fn operation<F, A, T, E>(self, operation: F) -> Report
    where
        F: Fn(Attempt) -> A + Send + Sync + 'static,
        A: Future<Output = Result<T, E>> + Send + 'static,
        T: Serialize,
        E: Display,
    {
        let call: Call = Arc::new(move |attempt| {
            let changed = attempt.changed;
            let running = operation(attempt);
            Box::pin(async move {
                match running.await.map(|value| serde_json::to_vec(&value)) {
                    Ok(Ok(body)) => Outcome::Done(Answer { code: None, body: Bytes::from(body) }),
                    Ok(Err(error)) => Outcome::Failed(format!("a value that is no JSON: {error}")),
                    Err(error) if changed => Outcome::Refused(format!("the error `{error}`")),
                    Err(error) => Outcome::Later(format!("the error `{error}`")),
                }
            })
        });
        self.run(call, true).await
    }

    /// Delivers messages to a consumer: `consumer` handles the message with this id. After an error, the message is
    /// delivered again.
    ///
    /// # Cancel safety
    /// As [`request`](ExactlyOnce::request).
    pub async fn consumer<F, A, E>(self, consumer: F) -> Report
    where
        F: Fn(String) -> A + Send + Sync + 'static,
        A: Future<Output = Result<(), E>> + Send + 'static,
        E: Display,
    {
        let call: Call = Arc::new(move |attempt| {
            let running = consumer(attempt.key);
            Box::pin(async move {
                match running.await {
                    Ok(()) => Outcome::Done(Answer { code: None, body: Bytes::new() }),
                    Err(error) => Outcome::Later(format!("the error `{error}`")),
                }
            })
        });
        self.run(call, false).await
    }

    async fn run(self, call: Call, has_other_request: bool) -> Report {
        let mut report = Report::new(self.seed);
        let conn = match PgConnection::connect_with(&self.pool.connect_options()).await {
            Ok(conn) => conn,
            Err(error) => {
                report.unusable(format!("cannot connect: {error}"));
                return report;
            }
        };
        let mut engine = Engine {
            call,
            conn,
            count: self.count,
            patience: self.patience,
            rng: fastrand::Rng::with_seed(self.seed),
            usual: None,
            report,
        };
        engine.run(has_other_request).await;
        engine.report
    }
}
