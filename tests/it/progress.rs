//! The progress of an operation, for clients that poll.

use std::time::Duration;

use pgonce::{ClaimState, ErrorKind, Failure, Lease, Status, Work};
use serde_json::Value;
use sqlx::Connection;

use crate::support::db::{TestDb, kept_for, op, started};

const MINUTE: Duration = Duration::from_secs(60);

async fn status(db: &TestDb, key: &str) -> Option<pgonce::Progress> {
    let op = op(key);
    db.once.status(&mut db.conn().await, op.scope(), op.key()).await.unwrap()
}

#[tokio::test]
async fn a_client_that_polls_sees_how_far_the_work_is() {
    let db = TestDb::new().await;
    assert_eq!(status(&db, "k").await, None, "unknown");
    let operation = op("k");
    let run = db.once.run_leased(
        &db.pool,
        &operation,
        Lease::new(MINUTE).unwrap(),
        async |work: &mut Work| {
            let early = status(&db, "k").await.unwrap();
            assert!(early.steps.is_empty() && early.said::<Value>()?.is_none());
            for name in ["b first", "a second"] {
                work.step(name, async || Ok::<_, Failure>("an output".to_owned())).await?;
            }
            work.progress(&serde_json::json!({"done": 2, "of": 3})).await?;
            let shown = status(&db, "k").await.unwrap();
            assert_eq!(shown.steps, ["b first", "a second"], "in the order of the work");
            assert_eq!(shown.said::<Value>()?.unwrap()["of"], 3);
            assert!(shown.said::<u32>().is_err(), "of another type");
            let long = work.progress(&"x".repeat(65_535)).await.unwrap_err(); // plus two quotes
            assert_eq!(long.to_string(), "progress has 65537 bytes; the limit is 65536");
            assert_eq!(long.kind(), ErrorKind::InvalidInput);
            assert_eq!(shown.record.claim, Some(ClaimState::Live));
            Ok::<_, Failure>("a response".to_owned())
        },
    );
    run.await.unwrap();
    let done = status(&db, "k").await.unwrap();
    assert_eq!((done.record.status, done.record.claim), (Status::Completed, None));
    let debug = format!("{done:?}");
    assert!(!debug.contains("\"of\"") && debug.contains("b first"), "{debug}");
}

#[tokio::test]
async fn what_a_client_sees_has_no_token_no_error_and_no_content_in_it() {
    let db = TestDb::new().await;
    let operation = op("canary-key");
    let run = db.once.run_leased(
        &db.pool,
        &operation,
        Lease::new(MINUTE).unwrap(),
        async |work: &mut Work| {
            work.step("charge", async || Ok::<_, Failure>("canary-output".to_owned())).await?;
            work.progress("half").await?;
            Err::<(), _>(Failure::from("canary-error"))
        },
    );
    run.await.unwrap_err();
    let shown = serde_json::to_value(status(&db, "canary-key").await).unwrap();
    let fields = shown.as_object().unwrap().keys().map(String::as_str).collect::<Vec<_>>();
    // Tokens, errors and fingerprints are not for clients: a new field needs a decision here.
    let expected = [
        "attempt",
        "claim",
        "completed_at",
        "created_at",
        "expires_at",
        "lease_expires_at",
        "progress",
        "response_code",
        "response_omitted",
        "status",
        "steps",
    ];
    assert_eq!(fields, expected);
    let text = shown.to_string();
    assert!(!text.contains("canary") && !text.contains("error"), "{text}");
    assert_eq!((&shown["claim"], &shown["progress"]), (&"lapsed".into(), &"half".into()));
    let created = shown["created_at"].as_str().unwrap();
    assert!(created.starts_with("20") && created.ends_with('Z'), "{created}");
    // Another program may have stored anything.
    db.execute("update {}.idempotency_keys set progress = 'no json'").await;
    let shown = serde_json::to_value(status(&db, "canary-key").await).unwrap();
    assert_eq!((&shown["progress"], &shown["steps"][0]), (&Value::Null, &"charge".into()));
}

#[tokio::test]
async fn asking_locks_nothing_and_waits_for_nobody() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    let hour = op("k").policy(kept_for(60 * MINUTE));
    drop(db.lease(&hour, MINUTE).await);
    db.advance(MINUTE).await;
    // Another caller takes over in an open transaction, and so has the key's lock and row.
    let mut holder = db.pool.begin().await.unwrap();
    let claim = started(db.once.begin(&mut holder, &hour).await.unwrap());
    let mut conn = db.conn().await;
    let mut tx = conn.begin().await.unwrap();
    sqlx::query("set local lock_timeout = '1ms'").execute(&mut *tx).await.unwrap();
    let shown = db.once.status(&mut tx, hour.scope(), hour.key()).await.unwrap().unwrap();
    assert_eq!((shown.record.claim, shown.record.attempt), (Some(ClaimState::Lapsed), 1));
    let locked: i64 = sqlx::query_scalar(
        "select count(*) from pg_locks where pid = pg_backend_pid()
           and (locktype in ('advisory', 'transactionid') or mode not in ('AccessShareLock', 'ExclusiveLock'))",
    )
    .fetch_one(&mut *tx)
    .await
    .unwrap();
    assert_eq!(locked, 0);
    claim.release(&mut holder).await.unwrap();
    holder.commit().await.unwrap();
    db.advance(60 * MINUTE).await;
    assert_eq!(status(&db, "k").await, None, "forgotten, whether the reaper has run or not");
}

#[test]
fn the_answer_to_work_that_goes_on_says_where_to_ask_and_when() {
    use pgonce::web::accepted;
    let answer = |pause: u64| accepted::<()>("/orders/17", Duration::from_millis(pause)).unwrap();
    let header = |answer: &http::Response<()>, name: &str| {
        answer.headers()[name].to_str().unwrap().to_owned()
    };
    let shown = answer(1001);
    assert_eq!(shown.status(), http::StatusCode::ACCEPTED);
    assert_eq!(header(&shown, "location"), "/orders/17");
    assert_eq!(header(&shown, "cache-control"), "no-store");
    assert_eq!(header(&shown, "retry-after"), "2", "whole seconds, rounded up");
    assert_eq!(header(&answer(0), "retry-after"), "1", "at once would be a storm");
    let refused = accepted::<()>("/orders\r\nset-cookie: x", MINUTE).unwrap_err();
    assert_eq!(refused.kind(), pgonce::ErrorKind::InvalidInput);
    assert!(!refused.to_string().contains("orders"), "{refused}");
}

#[tokio::test]
async fn an_axum_handler_answers_with_the_helper_and_the_progress_as_they_are() {
    use axum::response::IntoResponse;
    let db = TestDb::new().await;
    db.complete(&op("k"), "x").await;
    let accepted: axum::response::Response = pgonce::web::accepted("/orders/17", MINUTE).unwrap();
    assert_eq!(accepted.into_response().status(), 202);
    let shown = axum::Json(status(&db, "k").await).into_response();
    let body = axum::body::to_bytes(shown.into_body(), 10_000).await.unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&body).unwrap()["status"], "completed");
}
