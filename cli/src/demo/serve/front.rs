//! What the browser talks to: the page, the state that it shows, and the lossy connection to the payment server.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, Request, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, REFERRER_POLICY, RETRY_AFTER,
    X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http_body_util::Full;
use serde_json::{Value, json};

use super::Service;
use super::ledger::{Ledger, Owed, Owing};
use super::lock::{BoxError, Lock};
use super::loss::{Fate, Sent};
use super::process::Process;
use super::wire::{Lost, send};

pub(super) struct Front {
    pub(super) ledger: Ledger,
    pub(super) lock: Lock,
    pub(super) process: Arc<Process>,
    /// What does not change while the demo runs.
    pub(super) about: Value,
    pub(super) port: u16,
    /// The books show only the payments of this run. Starting over begins another one.
    run: AtomicI32,
    requests: AtomicU64,
    unanswered: AtomicU64,
}

const PAGES: [(&str, &str, &str); 4] = [
    ("/", "text/html; charset=utf-8", include_str!("page.html")),
    ("/page.css", "text/css; charset=utf-8", include_str!("page.css")),
    ("/page.js", "text/javascript; charset=utf-8", include_str!("page.js")),
    ("/icon.svg", "image/svg+xml", include_str!("icon.svg")),
];

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
    img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

impl Front {
    pub(super) fn new(
        ledger: Ledger,
        lock: Lock,
        process: Arc<Process>,
        about: Value,
        port: u16,
    ) -> Self {
        let (run, requests, unanswered) = (AtomicI32::new(1), AtomicU64::new(0), AtomicU64::new(0));
        Self { ledger, lock, process, about, port, run, requests, unanswered }
    }

    fn run(&self) -> i32 {
        self.run.load(Ordering::Relaxed)
    }

    /// Closes the connection without a response.
    fn break_off(&self) -> Response {
        self.unanswered.fetch_add(1, Ordering::Relaxed);
        let mut response = Response::new(Body::empty());
        response.extensions_mut().insert(Lost);
        response
    }
}

/// The demo's page, and the operator's page beside it.
pub(super) fn router(front: Front, operator: Router) -> Router {
    let front = Arc::new(front);
    let mut router = Router::new()
        .route("/state", get(state))
        .route("/payments", post(owe))
        .route("/pay/{service}", post(pay))
        .route("/kill", post(kill))
        .route("/start-over", post(start_over));
    for (path, content_type, text) in PAGES {
        router = router.route(path, get(async move || ([(CONTENT_TYPE, content_type)], text)));
    }
    let page = router.layer(from_fn(headers)).with_state(Arc::clone(&front));
    Router::new()
        .merge(page)
        // It sets its own headers.
        .nest("/operator", operator)
        .layer(from_fn_with_state(front, refuse_strangers))
}

async fn refuse_strangers(
    State(front): State<Arc<Front>>,
    request: Request,
    next: Next,
) -> Response {
    match is_own(&request, front.port) {
        true => next.run(request).await,
        false => StatusCode::FORBIDDEN.into_response(),
    }
}

/// Other pages in the same browser must not press the buttons, nor read the answers under a name that they have pointed
/// at this machine.
fn is_own(request: &Request, port: u16) -> bool {
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    let ours = ["127.0.0.1", "localhost"].map(|host| format!("{host}:{port}"));
    let is_ours = header(HOST).is_some_and(|host| ours.iter().any(|one| one == host));
    // Absent: not a browser.
    let site = header(HeaderName::from_static("sec-fetch-site")).unwrap_or("none");
    is_ours && (request.method() == Method::GET || ["same-origin", "none"].contains(&site))
}

async fn headers(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    for (name, value) in [
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, "no-store"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

async fn state(State(front): State<Arc<Front>>) -> Result<Json<Value>, Failed> {
    let server = front.process.status();
    let mut state = front.ledger.look(front.run(), &front.lock, server.dead).await?;
    state["run"] = front.run().into();
    state["about"] = front.about.clone();
    state["server"] = json!({ "pid": server.up.map(|up| up.pid), "kills": server.kills });
    state["requests"] = front.requests.load(Ordering::Relaxed).into();
    state["unanswered"] = front.unanswered.load(Ordering::Relaxed).into();
    Ok(Json(state))
}

/// Somebody wants to pay: from now on the books say what is owed. This does not go over the lossy connection.
async fn owe(
    State(front): State<Arc<Front>>,
    Json(owing): Json<Owing>,
) -> Result<Json<Vec<Owed>>, Failed> {
    let owed = front.ledger.owe(front.run(), &owing).await?;
    Ok(Json(owed.ok_or(Failed(StatusCode::TOO_MANY_REQUESTS))?))
}

/// The lossy connection. What gets lost looks to the browser as it does in life: the connection closes without a response.
async fn pay(
    State(front): State<Arc<Front>>,
    Path(service): Path<Service>,
    Query(sent): Query<Sent>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    // With the number of requests that the page has sent, this shows whether the browser sends some twice.
    front.requests.fetch_add(1, Ordering::Relaxed);
    let fate = sent.fate();
    if fate == Fate::RequestLost {
        return front.break_off();
    }
    let Some(up) = front.process.status().up else { return front.break_off() };
    let mut request = axum::http::Request::post(service.path()).header(HOST, "payments");
    for name in [CONTENT_TYPE, IDEMPOTENCY_KEY] {
        if let Some(value) = headers.get(&name) {
            request = request.header(name, value);
        }
    }
    let Ok(request) = request.body(Full::new(body)) else { return front.break_off() };
    match send(up.address, request).await {
        Ok(_) if fate == Fate::AnswerLost => front.break_off(),
        Ok(response) => relay(response),
        // The server was killed.
        Err(_) => front.break_off(),
    }
}

fn relay(answer: Response<Bytes>) -> Response {
    let (head, body) = answer.into_parts();
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = head.status;
    for name in [CONTENT_TYPE, RETRY_AFTER, REPLAYED] {
        if let Some(value) = head.headers.get(&name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    response
}

async fn kill(State(front): State<Arc<Front>>) -> Result<Json<Value>, Failed> {
    let pid = front.process.kill().await.ok_or(Failed(StatusCode::CONFLICT))?;
    Ok(Json(json!({ "killed": pid })))
}

async fn start_over(State(front): State<Arc<Front>>) -> Json<Value> {
    Json(json!({ "run": front.run.fetch_add(1, Ordering::Relaxed) + 1 }))
}

struct Failed(StatusCode);

impl From<BoxError> for Failed {
    fn from(error: BoxError) -> Self {
        tracing::warn!(%error, "the demo's database or Redis failed");
        Self(StatusCode::SERVICE_UNAVAILABLE)
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        self.0.into_response()
    }
}
