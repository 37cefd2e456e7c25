//! Transactional handlers that forget their transaction, or end it.

use axum::extract::Request;
use axum::response::IntoResponse;
use http::StatusCode;
use pgonce::web::{Answer, IdempotencyLayer, OnceClaim, OnceTx, Settle};
use pgonce::{Begin, Operation};
use sqlx::{Connection, Executor};
use tracing::Level;

use super::kit::{App, LEASE, Mode, app, handled, keys, numbered};
use super::{layer, post, send};
use crate::secrets::Log;
use crate::support::db::{TestDb, effect, lasting, started};
use crate::support::metrics::Metrics;

/// A handler that takes its transaction but writes through the pool.
fn forgets(db: &TestDb, idempotency: IdempotencyLayer, status: StatusCode) -> App {
    let (pool, schema) = (db.pool.clone(), db.schema.clone());
    handled(idempotency, move |_, request: Request| {
        let (pool, schema) = (pool.clone(), schema.clone());
        async move {
            let _tx = OnceTx::of(request.extensions());
            let _key = OnceClaim::of(request.extensions()).unwrap().derived_key("charge");
            effect(&mut pool.acquire().await.unwrap(), &schema, "outside").await.unwrap();
            status.into_response()
        }
    })
}

const UNUSED: &str = "never used its transaction";

#[tokio::test]
async fn a_success_without_the_transaction_is_warned_of_and_counted() {
    let metrics = Metrics::of_thread();
    let db = TestDb::new().await;
    let idempotency = layer(&db);
    let forgets = forgets(&db, idempotency.clone(), StatusCode::CREATED);
    let (log, _guard) = Log::of_thread(Level::INFO); // with spans
    assert_eq!(send(&forgets.router, post("k", "")).await.answer, Some(Answer::Performed));
    assert!(send(&forgets.router, post("k", "")).await.is_replay());
    let told = log.close();
    assert_eq!(told.matches(UNUSED).count(), 1, "{told}");
    assert!(told.contains("key="), "which one: {told}");
    assert_eq!(metrics.observed(Answer::TransactionUnused), 1);
    assert_eq!(metrics.answered(Answer::TransactionUnused), 0);
}

#[tokio::test]
async fn who_uses_it_or_fails_or_needs_none_is_not_warned() {
    let db = TestDb::new().await;
    let fine = [
        app(&db, layer(&db).refuse_unused_tx(), numbered),
        forgets(&db, layer(&db).refuse_unused_tx(), StatusCode::CONFLICT),
        forgets(&db, layer(&db).refuse_unused_tx(), StatusCode::BAD_GATEWAY),
        forgets(&db, Mode::Leased.layer(&db).refuse_unused_tx(), StatusCode::CREATED),
    ];
    let (log, _guard) = Log::of_thread(Level::WARN);
    for (number, app) in fine.iter().enumerate() {
        let got = send(&app.router, post(&format!("k{number}"), "")).await;
        assert_ne!(got.answer, Some(Answer::TransactionUnused), "{number}");
    }
    assert_eq!(log.close(), "");
}

#[tokio::test]
async fn a_strict_route_refuses_a_success_without_the_transaction() {
    let metrics = Metrics::of_thread();
    let db = TestDb::new().await;
    let idempotency = layer(&db).refuse_unused_tx();
    let forgets = forgets(&db, idempotency.clone(), StatusCode::CREATED);
    for _ in 0..2 {
        let got = send(&forgets.router, post("k", "")).await;
        assert_eq!((got.status.as_u16(), got.code()), (500, "transaction_unused".into()));
        assert_eq!(got.json()["retryable"], false);
    }
    assert_eq!((keys(&db).await, forgets.calls()), (0, 2));
    assert_eq!(metrics.answered(Answer::TransactionUnused), 2);
    // Reading through it counts as use.
    let reads = handled(idempotency, |call, request: Request| async move {
        OnceTx::of(request.extensions()).unwrap().execute("select 1").await.unwrap();
        numbered(call).into_response()
    });
    assert_eq!(send(&reads.router, post("k", "")).await.answer, Some(Answer::Performed));
}

#[tokio::test]
async fn an_observing_route_only_counts_it() {
    let metrics = Metrics::of_thread();
    let db = TestDb::new().await;
    let idempotency = layer(&db).refuse_unused_tx().observe();
    let forgets = forgets(&db, idempotency.clone(), StatusCode::CREATED);
    assert_eq!(send(&forgets.router, post("k", "")).await.status, StatusCode::CREATED);
    assert_eq!(metrics.observed(Answer::TransactionUnused), 1);
}

// Such failures are normal.
#[tokio::test]
async fn a_failure_of_the_business_is_not_worth_a_warning() {
    let db = TestDb::new().await;
    let fails = |mode: Mode, settle| {
        app(&db, mode.layer(&db), move |_| (StatusCode::CONFLICT, settle, "no"))
    };
    let (log, _guard) = Log::of_thread(Level::WARN);
    for settle in [Settle::Fail, Settle::Release] {
        for mode in super::kit::MODES {
            let key = format!("{mode:?}-{settle:?}");
            send(&fails(mode, settle).router, post(&key, "")).await;
        }
    }
    let mut conn = db.conn().await;
    let op = Operation::new("s", "k").unwrap();
    let mut tx = conn.begin().await.unwrap();
    drop(started(db.once.begin(&mut tx, &op).await.unwrap()));
    tx.rollback().await.unwrap();
    drop(db.once.begin_leased(&db.pool, &op, lasting(LEASE)).await.unwrap());
    assert_eq!(log.close(), "");
    assert!(matches!(db.once.begin(&mut conn, &op).await.unwrap(), Begin::InProgress(_)));
}

// Earlier writes are committed, without their key or with a key that stays in progress.
#[tokio::test]
async fn a_handler_that_commits_and_fails_is_an_error_in_the_log() {
    for status in [StatusCode::CONFLICT, StatusCode::BAD_GATEWAY] {
        let db = TestDb::new().await;
        let schema = db.schema.clone();
        let commits = handled(layer(&db), move |_, request: Request| {
            let schema = schema.clone();
            async move {
                let mut tx = OnceTx::of(request.extensions()).unwrap();
                effect(&mut tx, &schema, "done").await.unwrap();
                tx.execute("commit").await.unwrap();
                status.into_response()
            }
        });
        let (log, _guard) = Log::of_thread(Level::ERROR);
        let got = send(&commits.router, post("k", "")).await;
        assert_eq!((got.status.as_u16(), got.code()), (500, "transaction_lost".into()));
        assert_eq!(got.json()["retryable"], false);
        let told = log.close();
        assert!(told.contains("a handler ended its transaction"), "{status}: {told}");
    }
}
