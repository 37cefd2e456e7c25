//! The service, called by tonic's client over a real connection.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, reason = "tests")]

use std::convert::Infallible;
use std::time::Duration;

use grpc::message::{Order, Payment};
use grpc::shop::payments_client::PaymentsClient;
use http_body_util::BodyExt;
use pgonce::web::IdempotencyLayer;
use pgonce::{PgOnce, Scope};
use pgonce_testing::Throwaway;
use sqlx::{AssertSqlSafe, PgPool};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tonic::codec::CompressionEncoding;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};
use tower::{Layer, ServiceExt};

type Client = PaymentsClient<Channel>;

async fn world() -> (Client, PgPool) {
    let server = Throwaway::shared().await.expect("a PostgreSQL to test on");
    let pool = PgPool::connect_with(server.new_database().await.unwrap()).await.unwrap();
    let once = PgOnce::new();
    once.migrate(&mut pool.acquire().await.unwrap()).await.unwrap();
    let table = "create table payment (id bigint generated always as identity, cents bigint)";
    sqlx::query(table).execute(&pool).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(grpc::serve(listener, once, pool.clone()));
    (PaymentsClient::new(Endpoint::new(url).unwrap().connect_lazy()), pool)
}

fn request<T>(key: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("user", "alice".parse().unwrap());
    request.metadata_mut().insert("idempotency-key", key.parse().unwrap());
    request
}

async fn pay(client: &Client, key: &str, cents: i64) -> Result<Response<Payment>, Status> {
    client.clone().pay(request(key, Order { cents })).await
}

fn is_replayed(metadata: &tonic::metadata::MetadataMap) -> bool {
    metadata.get("idempotent-replayed").is_some_and(|value| value == "true")
}

async fn number(pool: &PgPool, sql: &str) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(pool).await.unwrap()
}

async fn payments(pool: &PgPool) -> i64 {
    number(pool, "select count(*) from payment").await
}

#[tokio::test]
async fn a_retry_gets_the_first_message_and_metadata() {
    let (client, pool) = world().await;
    let first = pay(&client, "k", 100).await.unwrap();
    assert!(!is_replayed(first.metadata()));
    let again = pay(&client, "k", 100).await.unwrap();
    assert!(is_replayed(again.metadata()));
    assert_eq!(first.get_ref(), again.get_ref());
    assert_eq!(first.metadata().get("location"), again.metadata().get("location"));
    assert_eq!(payments(&pool).await, 1);
}

#[tokio::test]
async fn twenty_calls_at_once_pay_once() {
    let (client, pool) = world().await;
    let mut calls = JoinSet::new();
    for _ in 0..20 {
        let client = client.clone();
        calls.spawn(async move { pay(&client, "k", 100).await });
    }
    let mut performed = 0;
    while let Some(call) = calls.join_next().await {
        match call.unwrap() {
            Ok(paid) => performed += usize::from(!is_replayed(paid.metadata())),
            Err(status) => {
                assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                let pause = status.metadata().get("grpc-retry-pushback-ms").unwrap();
                assert!(pause.to_str().unwrap().parse::<u64>().unwrap() >= 1000);
            }
        }
    }
    assert_eq!((performed, payments(&pool).await), (1, 1));
}

#[tokio::test]
async fn a_final_refusal_is_replayed_with_details_and_trailing_metadata_and_leaves_nothing() {
    let (client, pool) = world().await;
    let mut told = Vec::new();
    for _ in 0..2 {
        let status = pay(&client, "k", 2_000_000).await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition);
        let limit = status.metadata().get("limit").unwrap().clone();
        told.push((status.message().to_owned(), status.details().to_vec(), limit));
    }
    assert_eq!(told[0], told[1]);
    assert_eq!((&told[0].0[..], &told[0].1[..]), ("over the limit: 100 %", &b"limit"[..]));
    assert_eq!(payments(&pool).await, 0);
    assert_eq!(number(&pool, "select count(*) from pgonce.keys where status = 'failed'").await, 1);
    assert_eq!(number(&pool, "select last_value from payment_id_seq").await, 1, "one run");
}

#[tokio::test]
async fn what_the_layer_refuses_has_a_code_and_says_why() {
    let (client, pool) = world().await;
    pay(&client, "k", 100).await.unwrap();
    let mut keyless = request("k", Order { cents: 1 });
    keyless.metadata_mut().remove("idempotency-key");
    let cases = [
        (pay(&client, "k", 200).await, Code::FailedPrecondition, "mismatch"),
        (client.clone().pay(keyless).await, Code::InvalidArgument, "key_missing"),
        (pay(&client, "no key", 1).await, Code::InvalidArgument, "key_malformed"),
    ];
    for (answer, code, error) in cases {
        let status = answer.unwrap_err();
        assert_eq!(status.code(), code, "{error}");
        assert_eq!(status.metadata().get("idempotency-error").unwrap(), error);
        assert!(status.message().len() > 20, "{status:?}");
    }
    assert_eq!(payments(&pool).await, 1);
}

#[tokio::test]
async fn a_refusal_before_any_work_leaves_the_key_free() {
    let (client, pool) = world().await;
    assert_eq!(pay(&client, "k", -5).await.unwrap_err().code(), Code::InvalidArgument);
    assert!(!is_replayed(pay(&client, "k", 100).await.unwrap().metadata()));
    assert_eq!(payments(&pool).await, 1);
}

#[tokio::test]
async fn streams_are_refused_in_words_and_leave_the_key_free() {
    let (client, pool) = world().await;
    let order = || Order { cents: 100 };
    let history = client.clone().history(request("k", order())).await;
    let history = match history {
        Ok(stream) => stream.into_inner().message().await.unwrap_err(),
        Err(status) => status,
    };
    let orders = tokio_stream::iter([order(), order()]);
    let pay_all = client.clone().pay_all(request("k", orders)).await.unwrap_err();
    for status in [history, pay_all] {
        assert_eq!(status.code(), Code::Unimplemented);
        assert!(status.message().contains("takes one message and returns one"), "{status:?}");
    }
    assert!(!is_replayed(pay(&client, "k", 100).await.unwrap().metadata()));
    assert_eq!(payments(&pool).await, 1);
}

#[tokio::test]
async fn a_call_past_its_deadline_leaves_nothing_and_its_retry_pays() {
    let (client, pool) = world().await;
    let mut blocker = pool.begin().await.unwrap();
    sqlx::query("lock table payment").execute(&mut *blocker).await.unwrap();
    let mut late = request("k", Order { cents: 100 });
    late.set_timeout(Duration::from_millis(200));
    let status = client.clone().pay(late).await.unwrap_err();
    assert!(matches!(status.code(), Code::Cancelled | Code::DeadlineExceeded), "{status:?}");
    blocker.rollback().await.unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(45);
    while let Err(status) = pay(&client, "k", 100).await {
        assert_eq!(status.code(), Code::Unavailable);
        assert!(tokio::time::Instant::now() < deadline);
    }
    assert_eq!(payments(&pool).await, 1);
}

#[tokio::test]
async fn a_compressing_server_stores_what_every_client_can_read() {
    let (client, pool) = world().await;
    let gzip = client.clone().accept_compressed(CompressionEncoding::Gzip);
    let first = pay(&gzip, "k", 100).await.unwrap();
    assert_eq!(pay(&client, "k", 100).await.unwrap().get_ref(), first.get_ref());
    assert_eq!(pay(&gzip, "k", 100).await.unwrap().get_ref(), first.get_ref());
    assert_eq!(payments(&pool).await, 1);
}

/// What was stored by something else, or not at all.
#[tokio::test]
async fn a_response_that_is_not_there_says_whether_the_operation_is_done() {
    let (client, pool) = world().await;
    let statements = [
        ("done", "complete('alice/payments.pay', 'done', token, 200, null, 'paid')"),
        ("omitted", "complete('alice/payments.pay', 'omitted', token, p_omit => true)"),
        ("failed", "fail('alice/payments.pay', 'failed', token, 402, null, 'no')"),
    ];
    for (key, finish) in statements {
        let begin = format!("pgonce.begin_operation('alice/payments.pay', '{key}')");
        let finish = AssertSqlSafe(format!("select pgonce.{finish} from {begin}"));
        sqlx::query(finish).execute(&pool).await.unwrap();
        let status = pay(&client, key, 100).await.unwrap_err();
        let code = if key == "failed" { Code::FailedPrecondition } else { Code::AlreadyExists };
        assert_eq!(status.code(), code, "{key}: {status:?}");
        assert_eq!(status.metadata().get("idempotency-error").unwrap(), "omitted");
        assert!(is_replayed(status.metadata()), "{key}");
        assert!(status.message().contains("its answer was not kept"), "{key}: {status:?}");
    }
    assert_eq!(payments(&pool).await, 0);
}

#[tokio::test]
async fn requests_of_other_protocols_are_told_415() {
    let (_, pool) = world().await;
    let layer = IdempotencyLayer::new(PgOnce::new(), pool, |_| Some(Scope::of(["x"]))).grpc();
    let inner =
        tower::service_fn(async |_| Ok::<_, Infallible>(http::Response::new(String::new())));
    let service = layer.layer(inner);
    for content_type in ["application/json", "application/grpc-web", "text/plain"] {
        let request = http::Request::post("/").header("content-type", content_type);
        let answer = service.clone().oneshot(request.body(String::new()).unwrap()).await.unwrap();
        assert_eq!(answer.status(), 415, "{content_type}");
    }
    // A layer inside answers without gRPC: its status becomes a code.
    for (status, code) in [(401, 16), (404, 12), (503, 14), (418, 2)] {
        let refuse = move |_| async move {
            Ok::<_, Infallible>(
                http::Response::builder().status(status).body("no".to_owned()).unwrap(),
            )
        };
        let service = layer.layer(tower::service_fn(refuse));
        let request = http::Request::post("/").header("content-type", "application/grpc");
        let request = request.header("idempotency-key", format!("k-{status}")).body(String::new());
        let answer = service.oneshot(request.unwrap()).await.unwrap();
        assert_eq!(answer.headers()["content-type"], "application/grpc");
        let trailers = answer.into_body().collect().await.unwrap().trailers().cloned().unwrap();
        assert_eq!(trailers["grpc-status"], code.to_string());
    }
}
