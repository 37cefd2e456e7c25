//! The program of pgonce's page on testing. A test holds the page to it.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::time::Duration;

use axum::body::Body;
use axum::extract::Json;
use axum::http::{Request, StatusCode, request::Parts};
use axum::{Router, routing::post};
use pgonce::web::{HandlerTest, IdempotencyLayer, OnceClaim, OnceTx};
use pgonce::{Done, Fingerprint, Inbox, Message, Operation, PgOnce, Scope, Verdict};
use pgonce_testing::{Attempt, Clock, ExactlyOnce, Throwaway};
use sqlx::{PgConnection, PgPool};
use tower::ServiceExt;

#[derive(serde::Deserialize)]
struct Payment {
    amount: i64,
}

fn router(pool: PgPool) -> Router {
    let scope = |_: &Parts| Scope::new("acme/payments.create").ok();
    let idempotency = IdempotencyLayer::new(PgOnce::new(), pool, scope);
    Router::new().route("/payments", post(create_payment).layer(idempotency))
}

async fn insert(conn: &mut PgConnection, amount: i64) -> StatusCode {
    let insert = sqlx::query("insert into payment (amount) values ($1)").bind(amount);
    match insert.execute(conn).await {
        Ok(_) => StatusCode::CREATED,
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// Of a transactional route.
async fn create_payment(mut tx: OnceTx, Json(payment): Json<Payment>) -> StatusCode {
    insert(&mut tx, payment.amount).await
}

/// Of a leased route.
async fn create_charge(claim: OnceClaim, Json(payment): Json<Payment>) -> StatusCode {
    let key = claim.derived_key("charge"); // for the provider, who is asked here
    assert!(!key.as_str().is_empty());
    match claim.begin().await {
        Ok(mut tx) => insert(&mut tx, payment.amount).await,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

async fn pay(tx: &mut PgConnection, amount: i64) -> sqlx::Result<()> {
    sqlx::query("insert into payment (amount) values ($1)").bind(amount).execute(tx).await.map(drop)
}

async fn database() -> PgPool {
    let server = Throwaway::shared().await.unwrap(); // one for all tests of this program
    let pool = PgPool::connect_with(server.new_database().await.unwrap()).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    PgOnce::new().migrate(&mut conn).await.unwrap();
    sqlx::query("create table payment (amount bigint not null)").execute(&mut *conn).await.unwrap();
    pool
}

async fn payments(pool: &PgPool) -> i64 {
    sqlx::query_scalar("select count(*) from payment").fetch_one(pool).await.unwrap()
}

#[tokio::test]
async fn a_retry_gets_the_first_answer_and_pays_nothing() {
    let pool = database().await;
    let router = router(pool.clone());
    for replayed in [false, true] {
        let request = Request::post("/payments")
            .header("content-type", "application/json")
            .header("idempotency-key", "order-17")
            .body(Body::from(r#"{"amount": 100}"#))
            .unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::CREATED);
        assert_eq!(response.headers().contains_key("idempotent-replayed"), replayed);
    }
    assert_eq!(payments(&pool).await, 1);
}

#[tokio::test]
async fn the_handler_writes_a_payment() {
    let pool = database().await;
    let op = Operation::new("acme/payments.create", "order-17").unwrap();

    let test = HandlerTest::transactional(&pool, op.clone()).await.unwrap();
    let status = create_payment(test.tx().unwrap(), Json(Payment { amount: 100 })).await;
    assert_eq!(status, StatusCode::CREATED);
    test.commit().await.unwrap();
    assert_eq!(payments(&pool).await, 1);

    let test = HandlerTest::leased(&pool, op);
    let status = create_charge(test.claim(), Json(Payment { amount: 100 })).await;
    assert_eq!(status, StatusCode::CREATED);
    drop(test); // rolls back
    assert_eq!(payments(&pool).await, 1);
}

#[tokio::test]
async fn a_payment_is_made_exactly_once() {
    let pool = database().await;
    let request = Request::post("/payments")
        .header("content-type", "application/json")
        .body(Body::from(r#"{"amount": 100}"#))
        .unwrap();
    let tester = ExactlyOnce::new(&pool, "select count(*) from payment");
    tester.request(router(pool.clone()), request).await.assert();
}

#[tokio::test]
async fn run_pays_exactly_once() {
    let pool = database().await;
    let tester = ExactlyOnce::new(&pool, "select count(*) from payment");
    let operation = move |attempt: Attempt| {
        let pool = pool.clone();
        async move {
            let amount = if attempt.changed { 200 } else { 100 };
            let op = Operation::new("acme/payments.create", attempt.key)?
                .fingerprint(Fingerprint::of_json(&amount)?);
            let work = async |tx: &mut PgConnection| pay(tx, amount).await;
            PgOnce::new().run(&pool, &op, work).await.map(Done::into_inner)
        }
    };
    tester.operation(operation).await.assert();
}

#[tokio::test]
async fn a_message_pays_exactly_once() {
    let pool = database().await;
    let tester = ExactlyOnce::new(&pool, "select count(*) from payment");
    let inbox = Inbox::new(&PgOnce::new(), "orders").unwrap();
    let consumer = move |id: String| {
        let (inbox, pool) = (inbox.clone(), pool.clone());
        async move {
            let message = Message::new(id).redelivered(false);
            let work = async |tx: &mut PgConnection| pay(tx, 100).await;
            match inbox.handle(&pool, &message, work).await.verdict {
                Verdict::Ack => Ok(()),
                verdict => Err(format!("{verdict:?}")), // redelivered
            }
        }
    };
    tester.consumer(consumer).await.assert();
}

#[tokio::test]
async fn a_key_is_forgotten_after_a_day() {
    let pool = database().await;
    let mut clock = Clock::install(&pool, "pgonce").await.unwrap();
    let op = Operation::new("acme/payments.create", "order-17").unwrap();
    for payments_then in [1, 2] {
        let work = async |tx: &mut PgConnection| pay(tx, 100).await;
        PgOnce::new().run(&pool, &op, work).await.unwrap();
        assert_eq!(payments(&pool).await, payments_then);
        clock.advance(Duration::from_secs(24 * 60 * 60)).await.unwrap();
    }
}

#[test]
fn the_page_shows_this_program() {
    let (page, program) = ("../src/docs/testing.md", include_str!("endpoints.rs"));
    let page = std::fs::read_to_string(page).unwrap();
    let blocks: Vec<_> = page.split("```rust,ignore\n").skip(1).collect();
    for block in blocks.iter().filter(|block| !block.contains("#[sqlx::test]")) {
        let code = block.split("```").next().unwrap();
        assert!(program.contains(code), "not in tests/endpoints.rs:\n{code}");
    }
    assert!(blocks.len() > 3);
}
