//! Other tower layers, outside and inside this one.

use std::convert::Infallible;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::post as on_post;
use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, HeaderName};
use http::{HeaderValue, Method, StatusCode};
use http_body_util::channel::Channel;
use pgonce::Scope;
use pgonce::web::{Answer, IdempotencyLayer, OnceClaim, OnceTx};
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::compression::CompressionLayer;
use tower_http::cors::CorsLayer;
use tower_http::limit::RequestBodyLimitLayer;
use tower_http::timeout::TimeoutLayer;

use super::wire::{Count, CountDrop};
use super::{Got, layer, lease, post, send};
use crate::support::db::{PATIENCE, TestDb, effect};

/// Long enough to reach a handler, short enough to wait for.
const SHORT: Duration = Duration::from_secs(1);

fn timing_out() -> TimeoutLayer {
    TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, SHORT)
}

/// Work that fails in its first call, after its write.
#[derive(Clone)]
struct Work {
    schema: String,
    begun: Count,
    /// Counts every end, of any kind.
    ended: Count,
}

impl Work {
    fn new(db: &TestDb) -> Self {
        Self { schema: db.schema.clone(), begun: Count::new(), ended: Count::new() }
    }

    /// Never ends in its first call.
    async fn stuck_once(self, mut tx: OnceTx) -> String {
        let _end = CountDrop(self.ended.clone());
        self.begun.add();
        let id = effect(&mut tx, &self.schema, "paid").await.unwrap();
        if self.begun.get() == 1 {
            std::future::pending::<()>().await;
        }
        id.to_string()
    }

    async fn panics_once(self, mut tx: OnceTx) -> String {
        self.begun.add();
        let id = effect(&mut tx, &self.schema, "paid").await.unwrap();
        assert!(self.begun.get() > 1, "a handler's panic");
        id.to_string()
    }
}

// Trap 35.
#[tokio::test]
async fn a_timeout_around_a_transactional_route_undoes_everything() {
    let db = TestDb::with_connections(1).await;
    let work = Work::new(&db);
    let ended = work.ended.clone();
    let handler = async move |tx: OnceTx| work.clone().stuck_once(tx).await;
    let router = Router::new().route("/", on_post(handler).layer(layer(&db)));
    let first = send(&router.clone().layer(timing_out()), post("k", "")).await;
    assert_eq!((first.status, first.answer), (StatusCode::GATEWAY_TIMEOUT, None));
    ended.until(1).await;
    let retry = until_told(&router, || post("k", "")).await;
    assert_eq!((retry.status, retry.is_replay()), (StatusCode::OK, false));
    assert_eq!(db.effects().await, 1);
}

// Trap 35.
#[tokio::test]
async fn a_timeout_inside_is_an_outcome_that_is_not_stored() {
    let db = TestDb::with_connections(1).await;
    let work = Work::new(&db);
    let handler = async move |tx: OnceTx| work.clone().stuck_once(tx).await;
    let inside = ServiceBuilder::new().layer(layer(&db)).layer(timing_out());
    let hasty = Router::new().route("/", on_post(handler.clone()).layer(inside));
    let router = Router::new().route("/", on_post(handler).layer(layer(&db)));
    let first = send(&hasty, post("k", "")).await;
    assert_eq!(first.answer, Some(Answer::Released));
    assert_eq!(first.status, StatusCode::GATEWAY_TIMEOUT);
    let retry = send(&router, post("k", "")).await;
    assert_eq!(retry.answer, Some(Answer::Performed));
    assert_eq!(db.effects().await, 1);
}

// Trap 35.
#[tokio::test]
async fn a_timeout_around_a_leased_route_ends_the_wait_and_not_the_work() {
    let db = TestDb::with_connections(1).await;
    let (entered, go, schema) = (Count::new(), Count::new(), db.schema.clone());
    let (came, may) = (entered.clone(), go.clone());
    let handler = async move |claim: OnceClaim| {
        came.add();
        may.until(1).await;
        effect(&mut claim.begin().await.unwrap(), &schema, "paid").await.unwrap().to_string()
    };
    let router = Router::new()
        .route("/", on_post(handler).layer(layer(&db).leased(lease(PATIENCE)).unwrap()));
    let first = send(&router.clone().layer(timing_out()), post("k", "")).await;
    assert_eq!(first.status, StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(send(&router, post("k", "")).await.answer, Some(Answer::InProgress));
    go.add();
    assert!(until_told(&router, || post("k", "")).await.is_replay());
    assert_eq!((entered.get(), db.effects().await), (1, 1));
}

/// Retries until the answer is not "in progress".
async fn until_told(router: &Router, request: impl Fn() -> Request) -> Got {
    let asking = async {
        loop {
            let got = send(router, request()).await;
            if got.status != StatusCode::CONFLICT {
                return got;
            }
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.expect("a stuck key")
}

const TEXT: &str = "a text that repeats itself, repeats itself, repeats itself, repeats itself";

fn takes(request: Request, coding: &'static str) -> Request {
    let mut request = request;
    request.headers_mut().insert(ACCEPT_ENCODING, HeaderValue::from_static(coding));
    request
}

// Trap 51.
#[tokio::test]
async fn with_compression_outside_every_retry_negotiates_for_itself() {
    let db = TestDb::with_connections(1).await;
    let router = Router::new()
        .route("/", on_post(async |_: OnceTx| TEXT).layer(layer(&db)))
        .layer(CompressionLayer::new());
    let zipped = send(&router, takes(post("k", ""), "gzip")).await;
    assert_eq!(zipped.header("content-encoding"), Some("gzip"));
    let stored: Vec<u8> = db.ask("select response_body from {}.idempotency_keys").await;
    assert_eq!(stored, TEXT.as_bytes());
    let plain = send(&router, post("k", "")).await;
    assert!(plain.is_replay());
    assert_eq!((plain.header("content-encoding"), &*plain.body), (None, TEXT.as_bytes()));
    let again = send(&router, takes(post("k", ""), "gzip")).await;
    assert_eq!((again.header("content-encoding"), &again.body), (Some("gzip"), &zipped.body));
}

// Trap 51.
#[tokio::test]
async fn with_compression_inside_a_compressed_response_is_a_stream_and_not_kept() {
    let db = TestDb::with_connections(1).await;
    let inside = ServiceBuilder::new().layer(layer(&db)).layer(CompressionLayer::new());
    let router = Router::new().route("/", on_post(async |_: OnceTx| TEXT).layer(inside));
    let zipped = send(&router, takes(post("k", ""), "gzip")).await;
    assert_eq!(zipped.header("content-encoding"), Some("gzip"));
    assert_eq!(send(&router, takes(post("k", ""), "gzip")).await.code(), "omitted");
    // A response that needs no compression is stored unchanged.
    send(&router, post("plain", "")).await;
    let retry = send(&router, takes(post("plain", ""), "gzip")).await;
    assert_eq!((retry.is_replay(), &*retry.body), (true, TEXT.as_bytes()));
}

fn from_origin(mut request: Request, origin: &'static str) -> Request {
    request.headers_mut().insert("origin", HeaderValue::from_static(origin));
    request
}

#[tokio::test]
async fn with_cors_outside_a_browser_may_send_the_key_and_see_the_marker() {
    let db = TestDb::with_connections(1).await;
    let idempotency = layer(&db);
    let origins = ["https://a.test", "https://b.test"].map(HeaderValue::from_static);
    let cors = CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::POST])
        .allow_headers(idempotency.request_headers())
        .expose_headers(idempotency.response_headers());
    let schema = db.schema.clone();
    let handler = async move |mut tx: OnceTx| {
        effect(&mut tx, &schema, "paid").await.unwrap();
        [("access-control-allow-origin", "https://evil.test")] // from a CORS layer inside the handler
    };
    let router = Router::new().route("/", on_post(handler).layer(idempotency)).layer(cors);

    let preflight = Request::options("/")
        .header("origin", "https://a.test")
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "idempotency-key");
    let preflight = send(&router, preflight.body(Body::empty()).unwrap()).await;
    assert_eq!(preflight.answer, None);
    assert_eq!(preflight.header("access-control-allow-headers"), Some("idempotency-key"));

    send(&router, from_origin(post("k", ""), "https://a.test")).await;
    let replay = send(&router, from_origin(post("k", ""), "https://b.test")).await;
    assert!(replay.is_replay());
    assert_eq!(replay.header("access-control-allow-origin"), Some("https://b.test"));
    let exposed = replay.header("access-control-expose-headers").unwrap();
    assert!(exposed.contains("idempotent-replayed") && exposed.contains("retry-after"));
    let refused = send(&router, from_origin(post("k", "other"), "https://a.test")).await;
    assert_eq!(refused.header("access-control-allow-origin"), Some("https://a.test"));
}

/// The session of a pool with one connection. It changes if a connection is dropped.
async fn session(db: &TestDb) -> i32 {
    sqlx::query_scalar("select pg_backend_pid()").fetch_one(&db.pool).await.unwrap()
}

// Trap 36.
#[tokio::test]
async fn a_panic_reaches_the_layer_outside_after_its_key_is_free() {
    for leased in [false, true] {
        let db = TestDb::with_connections(1).await;
        let work = Work::new(&db);
        let route = if leased {
            on_post(async move |claim: OnceClaim| {
                work.clone().panics_once(claim.begin().await.unwrap()).await
            })
            .layer(layer(&db).leased(lease(PATIENCE)).unwrap())
        } else {
            on_post(async move |tx: OnceTx| work.clone().panics_once(tx).await).layer(layer(&db))
        };
        let router = Router::new().route("/", route).layer(CatchPanicLayer::new());
        let before = session(&db).await;
        let first = send(&router, post("k", "")).await;
        assert_eq!((first.status, first.answer), (StatusCode::INTERNAL_SERVER_ERROR, None));
        let retry = send(&router, post("k", "")).await; // at once, without an answer in between
        assert_eq!(retry.answer, Some(Answer::Performed), "leased: {leased}");
        assert_eq!(db.effects().await, 1);
        assert_eq!(session(&db).await, before, "rolled back, and not left to the server");
    }
}

// Trap 36.
#[tokio::test]
async fn a_panic_that_was_caught_inside_is_an_error_like_others() {
    let db = TestDb::with_connections(1).await;
    let work = Work::new(&db);
    let inside = ServiceBuilder::new().layer(layer(&db)).layer(CatchPanicLayer::new());
    let handler = async move |tx: OnceTx| work.clone().panics_once(tx).await;
    let router = Router::new().route("/", on_post(handler).layer(inside));
    let before = session(&db).await;
    let first = send(&router, post("k", "")).await;
    let answered = (first.status, first.answer);
    assert_eq!(answered, (StatusCode::INTERNAL_SERVER_ERROR, Some(Answer::Released)));
    assert_eq!(send(&router, post("k", "")).await.answer, Some(Answer::Performed));
    assert_eq!(db.effects().await, 1);
    assert_eq!(session(&db).await, before);
}

#[tokio::test]
async fn the_smaller_of_two_limits_holds() {
    let db = TestDb::with_connections(1).await;
    let route = || on_post(async |_: OnceTx, body: String| body.len().to_string());
    let layer = layer(&db).request_bytes_max(100);
    let outer = |max| {
        Router::new()
            .route("/", route().layer(layer.clone()))
            .layer(RequestBodyLimitLayer::new(max))
    };
    let told = |got: &Got| (got.status.as_u16(), got.header("content-type").map(str::to_owned));
    let problem = Some("application/problem+json".to_owned());
    // The layer's limit is smaller.
    assert_eq!(told(&send(&outer(200), post("k", "x".repeat(101))).await), (413, problem.clone()));
    assert_eq!(told(&send(&outer(200), post("k", unannounced(101))).await), (413, problem.clone()));
    // The outer limit is smaller: an announced length is refused outside, other bodies break off.
    let mut announced = post("k", "x".repeat(51));
    announced.headers_mut().insert("content-length", HeaderValue::from_static("51"));
    let early = send(&outer(50), announced).await;
    assert_eq!((early.status.as_u16(), early.answer), (413, None));
    let late = send(&outer(50), post("k", unannounced(51))).await;
    assert_eq!((told(&late), late.answer), ((413, problem), Some(Answer::RequestTooLarge)));
    assert_eq!(send(&outer(50), post("k", "x".repeat(50))).await.answer, Some(Answer::Performed));
}

fn unannounced(length: usize) -> Body {
    let (mut pen, paper) = Channel::<Bytes, Infallible>::new(1);
    tokio::spawn(async move { pen.send_data("x".repeat(length).into()).await });
    Body::new(paper)
}

#[tokio::test]
async fn authentication_comes_first_and_names_the_scope() {
    #[derive(Clone)]
    struct Tenant(String);
    let authenticate = async |mut request: Request, next: Next| -> Response {
        let Some(name) = request.headers().get("authorization").cloned() else {
            return StatusCode::UNAUTHORIZED.into_response();
        };
        request.extensions_mut().insert(Tenant(name.to_str().unwrap().to_owned()));
        next.run(request).await
    };
    let db = TestDb::with_connections(1).await;
    let by_tenant = |request: &http::request::Parts| {
        let Tenant(name) = request.extensions.get()?;
        Scope::new(format!("{name}/pay")).ok()
    };
    let idempotency = IdempotencyLayer::new(db.once.clone(), db.pool.clone(), by_tenant);
    let schema = db.schema.clone();
    let handler =
        async move |mut tx: OnceTx| effect(&mut tx, &schema, "paid").await.unwrap().to_string();
    let route = on_post(handler.clone()).layer(idempotency.clone());
    let router = Router::new().route("/", route).layer(from_fn(authenticate));
    let by = |name: &'static str| {
        let mut request = post("k", "");
        request
            .headers_mut()
            .insert(HeaderName::from_static("authorization"), name.parse().unwrap());
        request
    };
    let stranger = send(&router, post("k", "")).await;
    assert_eq!((stranger.status, stranger.answer), (StatusCode::UNAUTHORIZED, None));
    assert_eq!(send(&router, by("acme")).await.answer, Some(Answer::Performed));
    assert_eq!(send(&router, by("globex")).await.answer, Some(Answer::Performed));
    assert_eq!(send(&router, by("acme")).await.answer, Some(Answer::Replayed));
    // In the wrong order, nothing runs.
    let wrong = on_post(handler).layer::<_, Infallible>(from_fn(authenticate)).layer(idempotency);
    let wrong = Router::new().route("/", wrong);
    assert_eq!(send(&wrong, by("acme")).await.code(), "no_scope");
    assert_eq!(db.effects().await, 2);
}
