//! `ExactlyOnce` finds nothing in the payments example.
#![allow(
    clippy::unwrap_used,
    missing_docs,
    unreachable_pub,
    dead_code,
    reason = "tests, and a program's modules"
)]

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use pgonce::PgOnce;
use pgonce::web::IdempotencyLayer;
use pgonce_testing::{ExactlyOnce, Throwaway};
use sqlx::PgPool;

#[path = "../../examples/payments/api.rs"]
mod api;
#[path = "../../examples/payments/charges.rs"]
mod charges;
#[path = "../../examples/payments/error.rs"]
mod error;
#[path = "../../examples/payments/order.rs"]
mod order;
#[path = "../../examples/payments/payments.rs"]
mod payments;
#[path = "../../examples/payments/provider.rs"]
mod provider;

/// As the example starts, with the tables that it creates.
async fn example() -> (PgPool, Router) {
    let server = Throwaway::shared().await.unwrap();
    let options = server.new_database().await.unwrap();
    let pool = PgPool::connect_with(options.clone()).await.unwrap();
    let once = PgOnce::new();
    once.migrate(&mut pool.acquire().await.unwrap()).await.unwrap();
    let program = include_str!("../../examples/payments/main.rs");
    let tables = program.split("let tables = \"").nth(1).unwrap().split("\";").next().unwrap();
    sqlx::raw_sql(tables).execute(&pool).await.unwrap();
    let provider = provider::CardProvider::connect(options).await.unwrap();
    let idempotency = IdempotencyLayer::new(once, pool.clone(), api::scope);
    let app = api::App { pool: pool.clone(), provider };
    (pool, api::router(app, &idempotency).unwrap())
}

async fn assert_once(path: &str, effects: &str) {
    let (pool, router) = example().await;
    let request = Request::post(path)
        .header("authorization", "Bearer acme")
        .header("content-type", "application/json")
        .body(Body::from(r#"{"account": "a", "amount": 100, "currency": "EUR"}"#))
        .unwrap();
    let tester = ExactlyOnce::new(&pool, effects).patience(Duration::from_secs(30));
    let report = tester.request(router, request).await;
    println!("{report}");
    report.assert();
}

#[tokio::test]
async fn a_payment_is_made_once() {
    assert_once("/payments", "select count(*) from payments_example.payment").await;
}

#[tokio::test]
async fn a_charge_is_recorded_once() {
    assert_once("/charges", "select count(*) from payments_example.charge").await;
}

#[tokio::test]
async fn a_card_is_charged_once() {
    assert_once("/charges", "select count(*) from card_provider_example.charge").await;
}
