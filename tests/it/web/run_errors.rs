//! What `run` returns instead of a value, as a response.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::to_bytes;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use axum::response::IntoResponse;
use pgonce::{Failure, Fingerprint, OnLapse, Operation, Response, RunError};
use serde_json::{Value, json};
use sqlx::PgConnection;

use crate::support::db::{TestDb, effect, on_lapse, op};

const MINUTE: Duration = Duration::from_secs(60);

struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Value,
}

impl Answer {
    fn problem(&self) -> &str {
        assert_eq!(self.headers[CONTENT_TYPE], "application/problem+json");
        assert_eq!(self.headers[CACHE_CONTROL], "no-store");
        assert_eq!(self.body["status"], self.status);
        self.body["code"].as_str().unwrap()
    }
}

async fn answer<E>(error: RunError<E>) -> Answer {
    let response = match error.into_work() {
        Ok(_) => panic!("the work did not fail"),
        Err(rest) => rest.into_response(),
    };
    let (parts, body) = response.into_parts();
    let body = to_bytes(body, usize::MAX).await.unwrap();
    let body = serde_json::from_slice(&body).unwrap_or_default();
    Answer { status: parts.status.as_u16(), headers: parts.headers, body }
}

async fn refused(db: &TestDb, op: &Operation) -> Answer {
    let work = async |tx: &mut PgConnection| effect(tx, &db.schema, "never").await;
    answer(db.once.run(&db.pool, op, work).await.unwrap_err()).await
}

#[tokio::test]
async fn each_answer_has_the_layers_status_and_problem_document() {
    let db = TestDb::new().await;
    db.stop_clock().await;

    let one = op("bound").fingerprint(Fingerprint::of_bytes("one"));
    db.complete(&one, "1").await;
    let told = refused(&db, &op("bound").fingerprint(Fingerprint::of_bytes("two"))).await;
    assert_eq!((told.status, told.problem()), (422, "mismatch"));

    drop(db.lease(&op("leased"), MINUTE).await);
    let told = refused(&db, &op("leased")).await;
    assert_eq!((told.status, told.problem()), (409, "in_progress"));
    assert_eq!(told.headers[RETRY_AFTER], "5");
    db.advance(MINUTE).await;
    let told = refused(&db, &op("leased").policy(on_lapse(OnLapse::Hold))).await;
    assert_eq!((told.status, told.problem()), (409, "held"));

    let secret = op("secret").secret();
    db.once
        .run(&db.pool, &secret, async |_: &mut PgConnection| Ok::<_, Infallible>(7))
        .await
        .unwrap();
    let told = refused(&db, &secret).await;
    assert_eq!((told.status, told.problem()), (200, "omitted"));

    // It is done, and must not be sent under another key.
    db.complete(&op("text"), "\"text\"").await;
    let told = refused(&db, &op("text")).await;
    assert_eq!((told.status, told.problem()), (200, "omitted"));

    db.execute("alter table {}.idempotency_keys rename to gone").await;
    let told = refused(&db, &op("new")).await;
    assert_eq!((told.status, told.problem()), (500, "commit_refused"));
    assert_eq!(told.body["retryable"], false);
    assert_eq!(db.effects().await, 0);
}

#[tokio::test]
async fn a_bad_key_is_the_clients_fault_and_a_bad_scope_the_programs() {
    let key = RunError::<Infallible>::from(Operation::new("acme", "").unwrap_err());
    let told = answer(key).await;
    assert_eq!((told.status, told.problem()), (400, "key_malformed"));
    assert!(told.body["detail"].as_str().unwrap().starts_with("key is empty; it takes"));
    let scope = RunError::<Infallible>::from(Operation::new("", "k").unwrap_err());
    let told = answer(scope).await;
    assert_eq!((told.status, told.problem()), (500, "commit_refused"));
}

#[tokio::test]
async fn a_kept_failure_is_sent_as_it_is_stored() {
    let db = TestDb::new().await;
    for (key, response, status) in [
        ("coded", Response::json(&json!({"reason": "declined"})).unwrap().with_code(402), 402),
        ("plain", Response::json(&json!({"reason": "declined"})).unwrap(), 422),
    ] {
        for replayed in [false, true] {
            let op = op(key);
            let work = async |_: &mut PgConnection| Err::<(), _>(Failure::keep(response.clone()));
            let told = answer(db.once.run(&db.pool, &op, work).await.unwrap_err()).await;
            assert_eq!((told.status, &told.body["reason"]), (status, &json!("declined")), "{key}");
            assert_eq!(told.headers[CONTENT_TYPE], "application/json");
            assert_eq!(told.headers.contains_key("idempotent-replayed"), replayed, "{key}");
        }
    }
    let work = async |_: &mut PgConnection| {
        Err::<(), _>(Failure::keep(Response::bytes("declined").with_code(402)))
    };
    let told = answer(db.once.run(&db.pool, &op("text"), work).await.unwrap_err()).await;
    assert_eq!(told.status, 402);
    assert!(!told.headers.contains_key(CONTENT_TYPE), "it is not JSON");
}

#[tokio::test]
async fn a_kept_failure_whose_response_is_omitted_says_so() {
    let db = TestDb::new().await;
    let tiny = db.once.clone().response_bytes_max(1);
    let work = async |_: &mut PgConnection| {
        Err::<(), _>(Failure::keep(Response::bytes("declined").with_code(402)))
    };
    tiny.run(&db.pool, &op("k"), work).await.unwrap_err();
    let told = answer(tiny.run(&db.pool, &op("k"), work).await.unwrap_err()).await;
    assert_eq!((told.status, told.problem()), (402, "omitted"));
}

#[tokio::test]
async fn the_extractor_reads_the_key_as_the_layer_does() {
    use axum::extract::FromRequestParts;
    use axum::http::Request;
    use pgonce::web::IdempotencyKey;

    let ask = async |values: &[&str]| {
        let mut request = Request::post("/");
        for value in values {
            request = request.header("idempotency-key", *value);
        }
        let (mut parts, ()) = request.body(()).unwrap().into_parts();
        IdempotencyKey::from_request_parts(&mut parts, &()).await
    };
    for value in ["abc", "\"abc\"", " abc "] {
        assert_eq!(ask(&[value]).await.unwrap().0.as_str(), "abc");
    }
    for (values, code) in [
        (&[][..], "key_missing"),
        (&["a", "b"], "key_malformed"),
        (&["a, b"], "key_malformed"),
        (&[""], "key_malformed"),
    ] {
        let refusal = ask(values).await.unwrap_err();
        assert_eq!(refusal.status(), 400);
        let body = to_bytes(refusal.into_body(), usize::MAX).await.unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&body).unwrap()["code"], code);
    }
}
