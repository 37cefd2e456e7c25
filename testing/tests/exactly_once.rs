//! `ExactlyOnce` finds the fault that is planted in a service, and none in a correct one.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod planted;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderName, Request};
use pgonce_testing::{ExactlyOnce, Fault, Report, Scenario, Throwaway};
use sqlx::PgPool;
use std::time::Duration;

const SHORT: Duration = Duration::from_secs(2);

async fn database() -> PgPool {
    let server = Throwaway::shared().await.unwrap();
    let pool = PgPool::connect_with(server.new_database().await.unwrap()).await.unwrap();
    pgonce::PgOnce::new().migrate(&mut pool.acquire().await.unwrap()).await.unwrap();
    let tables = "create table payment (amount bigint not null);
                  create table seen (key text primary key, response text)";
    sqlx::raw_sql(tables).execute(&pool).await.unwrap();
    pool
}

fn tester(pool: &PgPool) -> ExactlyOnce {
    ExactlyOnce::new(pool, "select count(*) from payment")
}

fn payment() -> Request<Body> {
    Request::post("/payments")
        .header("content-type", "application/json")
        .body(Body::from(r#"{"amount": 100}"#))
        .unwrap()
}

async fn report(service: fn(PgPool) -> Router) -> Report {
    report_after(Duration::from_secs(30), service).await
}

/// Short patience is for services that never answer.
async fn report_after(patience: Duration, service: fn(PgPool) -> Router) -> Report {
    let pool = database().await;
    let tester = tester(&pool).patience(patience);
    let report = tester.request(service(pool.clone()), payment()).await;
    println!("{report}");
    report
}

/// The scenarios that found something, and what.
fn found(report: &Report) -> Vec<(Scenario, Fault)> {
    report.findings().iter().map(|finding| (finding.scenario, finding.fault)).collect()
}

#[tokio::test]
async fn a_correct_service_has_no_findings() {
    let report = report(planted::correct).await;
    report.assert();
    assert!(report.to_string().starts_with("no findings in "), "{report}");
    assert!(!report.to_string().contains("not run"), "{report}");
}

#[tokio::test]
async fn check_then_act() {
    let report = report(planted::check_then_act).await;
    // After a hang-up too, if the retry looks before the first call's commit.
    assert!(found(&report).contains(&(Scenario::AtOnce, Fault::Doubled)), "{report}");
}

#[tokio::test]
async fn effect_before_claim() {
    let report = report(planted::effect_before_claim).await;
    assert_eq!(found(&report), [(Scenario::InTurn, Fault::Doubled)]);
    assert!(report.to_string().contains("not run: the same call at once"), "{report}");
}

#[tokio::test]
async fn response_after_commit() {
    let report = report_after(SHORT, planted::response_after_commit).await;
    let found = found(&report);
    assert!(found.contains(&(Scenario::HangUp, Fault::NoAnswer)), "{report}");
    assert!(found.contains(&(Scenario::Killed, Fault::NoAnswer)), "{report}");
}

#[tokio::test]
async fn key_per_try() {
    let report = report(planted::key_per_try).await;
    assert_eq!(found(&report), [(Scenario::InTurn, Fault::Doubled)]);
}

#[tokio::test]
async fn body_not_in_the_fingerprint() {
    let report = report(planted::body_not_in_the_fingerprint).await;
    assert_eq!(found(&report), [(Scenario::ChangedRequest, Fault::NotRefused)]);
}

#[tokio::test]
async fn forgotten_transaction() {
    let report = report(planted::forgotten_transaction).await;
    let found = found(&report);
    // At once too, if one of the duplicates looks before the winner's commit.
    assert!(found.contains(&(Scenario::HangUp, Fault::Doubled)), "{report}");
    assert!(found.contains(&(Scenario::Killed, Fault::Doubled)), "{report}");
}

#[tokio::test]
async fn other_answer() {
    let report = report(planted::other_answer).await;
    assert_eq!(found(&report), [(Scenario::InTurn, Fault::OtherAnswer)]);
}

#[tokio::test]
async fn no_effect() {
    let report = report(planted::no_effect).await;
    assert_eq!(found(&report), [(Scenario::OneCall, Fault::Lost)]);
}

#[tokio::test]
async fn body_as_key() {
    let report = report(planted::body_as_key).await;
    assert_eq!(found(&report), [(Scenario::AnotherKey, Fault::Lost)]);
}

#[tokio::test]
async fn effect_with_the_body() {
    let report = report(planted::effect_with_the_body).await;
    let found = found(&report);
    assert!(found.contains(&(Scenario::HangUp, Fault::Lost)), "{report}");
    assert!(found.contains(&(Scenario::DroppedAnswer, Fault::Lost)), "{report}");
}

#[tokio::test]
async fn response_after_commit_in_a_task() {
    let report = report_after(SHORT, planted::response_after_commit_in_a_task).await;
    assert!(found(&report).contains(&(Scenario::Killed, Fault::NoAnswer)), "{report}");
}

#[tokio::test]
async fn a_duplicate_that_fails() {
    let report = report(planted::duplicate_that_fails).await;
    assert_eq!(found(&report), [(Scenario::AtOnce, Fault::Failed)]);
}

#[tokio::test]
async fn a_key_in_another_header_and_in_quotes() {
    let pool = database().await;
    let header = HeaderName::from_static("x-key");
    let service = planted::strict(pool.clone(), header.clone());
    tester(&pool).header(header).quoted().request(service, payment()).await.assert();
}

#[tokio::test]
async fn a_changed_request_must_be_acceptable() {
    let pool = database().await;
    let tester = tester(&pool).changed("no JSON");
    let report = tester.request(planted::correct(pool.clone()), payment()).await;
    assert_eq!(found(&report), [(Scenario::ChangedRequest, Fault::Unusable)], "{report}");
}

#[tokio::test]
async fn a_count_that_is_no_query() {
    let pool = database().await;
    let tester = ExactlyOnce::new(&pool, "select count(*) from nothing");
    let report = tester.request(planted::correct(pool.clone()), payment()).await;
    assert_eq!(found(&report), [(Scenario::OneCall, Fault::Unusable)]);
    assert!(report.to_string().contains("\"nothing\" does not exist"), "{report}");
}
