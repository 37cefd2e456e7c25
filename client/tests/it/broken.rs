//! Answers that break off, servers that fall silent, and answers that do not change.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::http::{StatusCode, request::Parts};
use axum::{Router, routing::post};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use pgonce::web::{IdempotencyLayer, OnceTx};
use pgonce::{PgOnce, Scope};
use pgonce_client::{Error, RetryLayer, RetryPolicy, Sent, client};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tower::{ServiceBuilder, ServiceExt};

use crate::service::{Service, serve};

const WHOLE: &str = "HTTP/1.1 201 Created\r\ncontent-length: 8\r\n\r\ncharge 1";

fn quick() -> RetryPolicy {
    RetryPolicy::new().pause(Duration::from_millis(1), Duration::from_millis(1)).unwrap()
}

/// A server that answers its first connection as told and every other with [`WHOLE`]. None: it never answers.
async fn first(answer: Option<&'static str>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let mut silent = Vec::new();
        for number in 0.. {
            let (mut connection, _) = listener.accept().await.unwrap();
            let answer = if number == 0 { answer } else { Some(WHOLE) };
            connection.read_buf(&mut Vec::new()).await.unwrap();
            match answer {
                Some(answer) => connection.write_all(answer.as_bytes()).await.unwrap(),
                None => silent.push(connection),
            }
        }
    });
    format!("http://{address}/")
}

/// The tries and the body.
async fn by_reqwest(url: &str, policy: RetryPolicy) -> (u32, Bytes) {
    let http = reqwest::Client::builder().no_proxy();
    let answer = client(http, policy).unwrap().post(url).body("x").send().await.unwrap();
    let tries = answer.extensions().get::<Sent>().unwrap().tries;
    assert_eq!((answer.status().as_u16(), answer.url().as_str()), (201, url));
    (tries, answer.bytes().await.expect("the whole answer"))
}

async fn by_tower(url: &str, policy: RetryPolicy) -> (u32, Bytes) {
    let http = Client::builder(TokioExecutor::new()).build_http();
    let service = ServiceBuilder::new().layer(RetryLayer::new(policy)).service(http);
    let request = http::Request::post(url).body(Full::new(Bytes::from("x"))).unwrap();
    let (parts, body) = service.oneshot(request).await.unwrap().into_parts();
    let body = body.collect().await.expect("the whole answer");
    (parts.extensions.get::<Sent>().unwrap().tries, body.to_bytes())
}

/// The charge is made, and the caller does not know its key: only the client can send it again.
#[tokio::test]
async fn an_answer_that_breaks_off_is_asked_for_again() {
    let half = Some("HTTP/1.1 201 Created\r\ncontent-length: 8\r\n\r\nchar");
    let whole = (2, Bytes::from("charge 1"));
    assert_eq!(by_reqwest(&first(half).await, quick()).await, whole);
    assert_eq!(by_tower(&first(half).await, quick()).await, whole);
}

#[tokio::test]
async fn a_server_that_falls_silent_is_asked_again_before_the_deadline() {
    let policy = || quick().try_deadline(Duration::from_millis(200)).unwrap();
    let whole = (2, Bytes::from("charge 1"));
    assert_eq!(by_reqwest(&first(None).await, policy()).await, whole);
    assert_eq!(by_tower(&first(None).await, policy()).await, whole);
}

/// A service that is ready once.
#[derive(Clone, Default)]
struct ReadyOnce(Arc<AtomicU32>);

impl tower::Service<http::Request<Full<Bytes>>> for ReadyOnce {
    type Response = http::Response<Full<Bytes>>;
    type Error = std::io::Error;
    type Future = std::future::Ready<Result<Self::Response, Self::Error>>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Self::Error>> {
        match self.0.fetch_add(1, Ordering::Relaxed) {
            0 => std::task::Poll::Ready(Ok(())),
            _ => std::task::Poll::Pending,
        }
    }

    fn call(&mut self, _: http::Request<Full<Bytes>>) -> Self::Future {
        std::future::ready(Err(std::io::ErrorKind::ConnectionReset.into()))
    }
}

#[tokio::test]
async fn a_service_that_is_not_ready_again_ends_at_the_deadline() {
    let policy = quick().deadline(Duration::from_millis(300)).unwrap();
    let service =
        ServiceBuilder::new().layer(RetryLayer::new(policy)).service(ReadyOnce::default());
    let request = http::Request::post("/").body(Full::default()).unwrap();
    let call = tokio::time::timeout(Duration::from_secs(20), service.oneshot(request));
    let error = call.await.expect("it ends at its deadline").unwrap_err();
    assert!(matches!(error.downcast_ref(), Some(Error::Deadline { .. })), "{error}");
}

/// A 409 of the handler's own, which the server keeps: it never changes.
#[tokio::test]
async fn a_replay_is_final() {
    let service = Service::start().await;
    let idempotency = IdempotencyLayer::new(PgOnce::new(), service.pool.clone(), |_: &Parts| {
        Some(Scope::of(["sold out"]))
    });
    let requests = Arc::new(AtomicU32::new(0));
    let count = requests.clone();
    let sold_out = async |mut tx: OnceTx| {
        sqlx::query("select 1").execute(&mut *tx).await.unwrap();
        (StatusCode::CONFLICT, "sold out")
    };
    let router = Router::new().route("/", post(sold_out).layer(idempotency)).layer(
        axum::middleware::map_request(move |request: axum::extract::Request| {
            count.fetch_add(1, Ordering::Relaxed);
            async { request }
        }),
    );
    let url = format!("http://{}/", serve(router).await);
    let http = reqwest::Client::builder().no_proxy();
    let began = Instant::now();
    let answer = client(http, quick()).unwrap().post(url).body("x").send().await.unwrap();
    assert_eq!(answer.extensions().get(), Some(&Sent { tries: 2, replayed: true }));
    assert_eq!(answer.status(), StatusCode::CONFLICT);
    assert_eq!(answer.text().await.unwrap(), "sold out");
    assert_eq!(requests.load(Ordering::Relaxed), 2, "{:?}", began.elapsed());
}
