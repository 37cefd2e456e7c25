//! Where the layer can be placed, and what it needs of the inner service.

use std::convert::Infallible;
use std::future::Ready;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use axum::Router;
use axum::body::Body;
use axum::extract::Path;
use axum::routing::{get, post as on_post};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use pgonce::web::{Answer, Buffered, IdempotencyLayer, OnceClaim, OnceTx};
use tower::{BoxError, Layer, Service, ServiceBuilder, ServiceExt, service_fn};

use super::wire::Count;
use super::{layer, lease, post, send};
use crate::support::db::{PATIENCE, TestDb, effect};
use crate::support::metrics::Metrics;

/// Panics if called without a check of its readiness, as a service may.
#[derive(Default)]
struct Strict {
    ready: bool,
    calls: Arc<AtomicUsize>,
}

impl Clone for Strict {
    fn clone(&self) -> Self {
        Self { ready: false, calls: Arc::clone(&self.calls) }
    }
}

impl<B> Service<Request<B>> for Strict {
    type Response = Response<Full<bytes::Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<B>) -> Self::Future {
        assert!(std::mem::take(&mut self.ready), "called without being ready");
        self.calls.fetch_add(1, Ordering::Relaxed);
        std::future::ready(Ok(Response::new(Full::default())))
    }
}

fn modes(db: &TestDb) -> [(&'static str, IdempotencyLayer); 2] {
    [("transactional", layer(db)), ("leased", layer(db).leased(lease(PATIENCE)).unwrap())]
}

#[tokio::test]
async fn the_service_that_is_called_is_the_one_that_was_ready() {
    let db = TestDb::with_connections(1).await;
    for (key, idempotency) in modes(&db) {
        let strict = Strict::default();
        let mut service = idempotency.optional().layer(strict.clone());
        let get = || Request::get("/").body(Body::empty()).unwrap();
        let unkeyed = || Request::post("/").body(Body::empty()).unwrap();
        for request in [get(), unkeyed(), post(key, ""), post(key, ""), get()] {
            let service = ServiceExt::<Request<Body>>::ready(&mut service).await.unwrap();
            service.call(request).await.unwrap();
        }
        assert_eq!(strict.calls.load(Ordering::Relaxed), 4, "one was a replay");
    }
}

#[tokio::test]
async fn limits_and_buffers_inside_are_asked_first() {
    // Both panic if they are called when not ready.
    let db = TestDb::with_connections(4).await;
    for (key, idempotency) in modes(&db) {
        let strict = Strict::default();
        let calls = Arc::clone(&strict.calls);
        let limited = ServiceBuilder::new()
            .layer(idempotency)
            .buffer::<Request<Buffered<Body>>>(1)
            .concurrency_limit(1)
            .service(strict);
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..20 {
            let (service, key) = (limited.clone(), format!("{key}-{}", number % 10));
            tasks.spawn(async move { service.oneshot(post(&key, "")).await.unwrap().status() });
        }
        let told = tasks.join_all().await;
        let fine = [StatusCode::OK, StatusCode::CONFLICT];
        assert!(told.iter().all(|status| fine.contains(status)), "{told:?}");
        assert_eq!(calls.load(Ordering::Relaxed), 10);
    }
}

// Trap 37.
#[tokio::test]
async fn an_error_of_the_service_is_passed_on_and_frees_the_key() {
    let db = TestDb::with_connections(1).await;
    for (key, idempotency) in modes(&db) {
        let entered = Count::new();
        let (came, schema) = (entered.clone(), db.schema.clone());
        let before = db.effects().await;
        let service = idempotency.layer(service_fn(move |request: Request<Buffered<Body>>| {
            let (came, schema) = (came.clone(), schema.clone());
            async move {
                came.add();
                let mut tx = match OnceTx::of(request.extensions()) {
                    Ok(tx) => tx,
                    Err(_) => OnceClaim::of(request.extensions())?.begin().await?,
                };
                effect(&mut tx, &schema, "paid").await?;
                if came.get() == 1 {
                    return Err(BoxError::from("the service broke"));
                }
                Ok(Response::new(Full::<bytes::Bytes>::default()))
            }
        }));
        let error = service.clone().oneshot(post(key, "")).await.unwrap_err();
        assert_eq!(error.to_string(), "the service broke");
        let retry = service.oneshot(post(key, "")).await.unwrap();
        assert_eq!(retry.extensions().get(), Some(&Answer::Performed), "{key}");
        assert_eq!((entered.get(), db.effects().await - before), (2, 1), "{key}");
    }
}

fn to(path: &str, key: &str) -> Request<Body> {
    let mut request = post(key, "");
    *request.uri_mut() = path.parse().unwrap();
    request
}

#[tokio::test]
async fn routes_of_one_router_have_policies_of_their_own_and_one_count() {
    let metrics = Metrics::of_thread();
    let db = TestDb::with_connections(1).await;
    let base = layer(&db);
    let claimed = on_post(async |claim: OnceClaim| claim.attempt().to_string());
    let router = Router::new()
        .route("/tx", on_post(async |_: OnceTx| "tx").layer(base.clone()))
        .route("/leased", claimed.layer(base.clone().leased(lease(PATIENCE)).unwrap()))
        .route("/free", on_post(async || "free").layer(base.clone().off()))
        .route("/bare", on_post(async || "bare"));
    for (path, first, then) in [
        ("/tx", Some(Answer::Performed), Some(Answer::Replayed)),
        ("/leased", Some(Answer::Performed), Some(Answer::Replayed)),
        ("/free", Some(Answer::Unkeyed), Some(Answer::Unkeyed)),
        ("/bare", None, None),
    ] {
        assert_eq!(send(&router, to(path, path)).await.answer, first, "{path}");
        assert_eq!(send(&router, to(path, path)).await.answer, then, "{path}");
    }
    let counts = [Answer::Performed, Answer::Replayed, Answer::Unkeyed];
    assert_eq!(counts.map(|answer| metrics.answered(answer)), [2, 2, 2]);
}

#[tokio::test]
async fn a_layer_around_a_router_covers_what_is_not_there_and_a_route_layer_does_not() {
    let db = TestDb::with_connections(1).await;
    let routes =
        || Router::new().route("/", on_post(async |_: OnceTx| "paid")).route("/read", get(""));
    let whole = routes().layer(layer(&db));
    let routed = routes().route_layer(layer(&db));
    for router in [&whole, &routed] {
        assert_eq!(send(router, post("k", "")).await.status, StatusCode::OK);
    }
    let told = async |router: &Router, path: &str| {
        let mut unkeyed = to(path, "k");
        unkeyed.headers_mut().remove("idempotency-key");
        [
            send(router, to(path, path)).await.status.as_u16(),
            send(router, unkeyed).await.status.as_u16(),
        ]
    };
    // With a key, the router's response; without a key, the layer's refusal comes first.
    assert_eq!(told(&whole, "/nowhere").await, [404, 400]);
    assert_eq!(told(&whole, "/read").await, [405, 400]);
    assert_eq!(told(&routed, "/nowhere").await, [404, 404]);
    // None of these finished its key.
    assert_eq!(db.ask::<i64>("select count(*) from {}.idempotency_keys").await, 1);
}

#[tokio::test]
async fn a_key_is_bound_to_the_whole_path_of_a_nested_route() {
    let db = TestDb::with_connections(1).await;
    let handler = async |_: OnceTx, Path(account): Path<u32>| account.to_string();
    let inside = Router::new().route("/deposit", on_post(handler).layer(layer(&db)));
    let outside = Router::new().route("/deposit", on_post(handler));
    let inside = Router::new().nest("/accounts/{account}", inside);
    let outside = Router::new().nest("/accounts/{account}", outside).layer(layer(&db));
    assert_eq!(&*send(&inside, to("/accounts/1/deposit", "k")).await.body, b"1");
    let other = send(&inside, to("/accounts/2/deposit", "k")).await;
    assert_eq!(other.status, StatusCode::UNPROCESSABLE_ENTITY, "{other:?}");
    // At any place of the layer: moving it does not change the request.
    assert!(send(&outside, to("/accounts/1/deposit", "k")).await.is_replay());
}
