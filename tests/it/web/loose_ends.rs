//! What a handler leaves behind, and what blocks it.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use axum::response::IntoResponse;
use http::StatusCode;
use pgonce::web::{Answer, OnceClaim, OnceTx};
use sqlx::Connection;
use tokio::sync::Notify;

use super::concurrency::sent;
use super::kit::{Gate, LEASE, MODES, Mode, app, gated, handled, numbered, patient, pool};
use super::{layer, lease, post, send};
use crate::support::db::{PATIENCE, TestDb, effect};
use crate::support::proxy::{Cut, Proxy};

// A task that outlives the request has the claim, but must not keep the transaction.
#[tokio::test]
async fn a_task_left_behind_keeps_no_transaction_open() {
    let db = TestDb::new().await;
    let (gate, gone) = (Gate::new(), Arc::new(Notify::new()));
    let (tell, told) = tokio::sync::oneshot::channel();
    let tell = Arc::new(std::sync::Mutex::new(Some(tell)));
    let (stops, hung_up, schema) = (gate.clone(), gone.clone(), db.schema.clone());
    let app = handled(layer(&db), move |call, request: Request| {
        let (gate, gone, schema) = (stops.clone(), hung_up.clone(), schema.clone());
        let tell = tell.lock().unwrap().take();
        async move {
            let mut tx = OnceTx::of(request.extensions()).unwrap();
            effect(&mut tx, &schema, "paid").await.unwrap();
            drop(tx);
            if let Some(tell) = tell {
                let claim = OnceClaim::of(request.extensions()).unwrap();
                tokio::spawn(async move {
                    gone.notified().await;
                    let _ = tell.send(claim.begin().await.map(drop));
                });
                gate.pass().await;
            }
            numbered(call).into_response()
        }
    });
    let first = sent(&app, "k", "");
    gate.entered().await;
    first.abort();
    db.until(
        "select count(*) = 0 from pg_stat_activity
          where application_name = '{}' and state like 'idle in transaction%'",
    )
    .await;
    gone.notify_one();
    let late = patient(told).await.unwrap().unwrap_err();
    assert_eq!(late.to_string(), "the handler has ended");
    let retry = send(&app.router, post("k", "")).await;
    assert_eq!((retry.answer, db.effects().await), (Some(Answer::Performed), 1));
}

// An operator has locked one key. The other keys' leases are renewed all the same.
#[tokio::test]
async fn a_key_that_is_locked_keeps_no_other_lease_from_being_renewed() {
    let db = TestDb::new().await;
    let gate = Gate::new();
    let app =
        gated(&db, layer(&db).leased(lease(std::time::Duration::from_secs(2))).unwrap(), &gate);
    let (a, b) = (sent(&app, "a", ""), sent(&app, "b", ""));
    gate.entered().await;
    gate.entered().await;
    let mut conn = db.conn().await;
    let mut locked = conn.begin().await.unwrap();
    let sql = "select {}.release(scope, key, token) from {}.idempotency_keys where key = 'a'";
    sqlx::raw_sql(db.sql(sql)).execute(&mut *locked).await.unwrap();
    db.until(
        "select lease_expires_at > created_at + interval '6 s' from {}.idempotency_keys where key = 'b'",
    )
    .await;
    locked.rollback().await.unwrap();
    gate.open();
    gate.open();
    for first in [a, b] {
        assert_eq!(patient(first).await.unwrap().answer, Some(Answer::Performed));
    }
    assert_eq!(app.calls(), 2);
}

// Trap 40. The same lock blocks storing a response: the client gets the response in the end.
#[tokio::test]
async fn a_response_that_cannot_be_stored_for_a_lock_is_sent() {
    let db = TestDb::new().await;
    let gate = Gate::new();
    let stops = gate.clone();
    let app = handled(layer(&db).leased(lease(LEASE)).unwrap(), move |call, _| {
        let gate = stops.clone();
        async move {
            gate.pass().await;
            numbered(call).into_response()
        }
    });
    let first = sent(&app, "k", "");
    gate.entered().await;
    let mut conn = db.conn().await;
    let mut locked = conn.begin().await.unwrap();
    let sql = "select {}.release(scope, key, token) from {}.idempotency_keys";
    sqlx::raw_sql(db.sql(sql)).execute(&mut *locked).await.unwrap();
    gate.open();
    let got = tokio::time::timeout(2 * PATIENCE, first).await.expect("an answer").unwrap();
    assert_eq!((got.status, got.answer), (StatusCode::CREATED, Some(Answer::Unstored)));
    locked.rollback().await.unwrap();
}

// Trap 41. Without a key, a retry cannot find out the outcome and may perform twice.
#[tokio::test]
async fn an_unknown_commit_without_a_key_is_not_called_retryable() {
    let db = TestDb::new().await;
    let make = |db: &TestDb| app(db, layer(db).optional(), numbered);
    let request = || Request::post("/").header("x-tenant", "acme").body(Body::empty()).unwrap();
    let proxy = Proxy::start(&db, None);
    send(&make(&TestDb::open(&db.schema, proxy.options(), 1).await).router, request()).await;
    let commit = proxy.requests().iter().position(|request| request == "COMMIT").unwrap() + 1;
    let proxy = Proxy::start(&db, Some(Cut::After(commit)));
    let app = make(&TestDb::open(&db.schema, proxy.options(), 1).await);
    let got = send(&app.router, request()).await;
    assert_eq!((got.status.as_u16(), got.code()), (503, "commit_unknown".into()));
    assert_eq!((&got.json()["retryable"], got.header("retry-after")), (&false.into(), None));
}

// Trap 7. An upgrade is a GET. A covered method is covered whatever its headers say.
#[tokio::test]
async fn an_upgrade_header_switches_nothing_off() {
    for mode in MODES {
        for (connection, upgrade) in [
            ("close", "websocket"),
            ("upgrade", ""),
            ("upgrade", "foo"),
            ("Upgrade, HTTP2-Settings", "h2c"),
            ("upgrade", "HTTP/2.0, h2c"),
            ("keep-alive, Upgrade", "websocket"),
        ] {
            let db = TestDb::new().await;
            let app =
                handled(mode.layer(&db), |call, _| async move { numbered(call).into_response() });
            let upgrading = || {
                let mut request = post("k", "");
                request.headers_mut().insert("connection", connection.parse().unwrap());
                request.headers_mut().insert("upgrade", upgrade.parse().unwrap());
                request
            };
            for _ in 0..2 {
                send(&app.router, upgrading()).await;
            }
            let mut unkeyed = upgrading();
            unkeyed.headers_mut().remove("idempotency-key");
            let refused = send(&app.router, unkeyed).await;
            assert_eq!(refused.answer, Some(Answer::KeyMissing), "{connection}: {upgrade}");
            assert_eq!(app.calls(), 1, "{connection}: {upgrade}");
        }
    }
}

// The pool has no free connection for storing the response. The lease continues until it has.
#[tokio::test]
async fn a_lease_is_renewed_while_its_response_waits_to_be_stored() {
    let db = TestDb::with_connections(1).await;
    let gate = Gate::new();
    let stops = gate.clone();
    let app = handled(
        layer(&db).leased(lease(std::time::Duration::from_secs(1))).unwrap(),
        move |call, _| {
            let gate = stops.clone();
            async move {
                gate.pass().await;
                numbered(call).into_response()
            }
        },
    );
    let first = sent(&app, "k", "");
    gate.entered().await;
    let busy = db.pool.acquire().await.unwrap();
    gate.open();
    db.until("select lease_expires_at > created_at + interval '4 s' from {}.idempotency_keys")
        .await;
    drop(busy);
    assert_eq!(patient(first).await.unwrap().answer, Some(Answer::Performed));
}

// Trap 53. A handler cannot mark its own response as a replay.
#[tokio::test]
async fn the_first_answer_never_carries_the_marker() {
    for mode in MODES {
        let db = TestDb::new().await;
        let marked = || ([("idempotent-replayed", "true")], "done");
        let app = app(&db, mode.layer(&db), move |_| marked());
        assert!(!send(&app.router, post("k", "")).await.is_replay());
        assert!(send(&app.router, post("k", "")).await.is_replay());
    }
}

#[tokio::test]
async fn observing_lets_a_handlers_work_stand_when_its_claim_cannot_be_completed() {
    for mode in MODES {
        let db = TestDb::new().await;
        let app = app(&db, mode.layer(&db).observe(), numbered);
        db.execute("drop function {}.complete").await;
        assert_eq!(send(&app.router, post("k", "")).await.status, StatusCode::CREATED);
        assert_eq!(db.effects().await, 1);
    }
}

// A request that gets no connection does not wait for one twice.
#[tokio::test]
async fn failing_open_waits_for_the_pool_once() {
    let mut db = TestDb::new().await;
    let wait = std::time::Duration::from_secs(2);
    let full = pool(&db, |options| options.max_connections(1).acquire_timeout(wait));
    let _taken = full.acquire().await.unwrap();
    db.pool = full.clone();
    let app =
        handled(layer(&db).fail_open(), |call, _| async move { numbered(call).into_response() });
    let began = std::time::Instant::now();
    assert_eq!(send(&app.router, post("k", "")).await.answer, Some(Answer::Unprotected));
    assert!(began.elapsed() < 2 * wait, "{:?}", began.elapsed());
}

#[tokio::test]
async fn nothing_shows_the_databases_password() {
    let mut db = TestDb::new().await;
    let options = db.options.clone().password("correct horse");
    db.pool = sqlx::postgres::PgPoolOptions::new().connect_lazy_with(options);
    let gate = Gate::new();
    let app = gated(&db, Mode::Leased.layer(&db), &gate);
    let first = sent(&app, "k", "");
    gate.entered().await;
    let shown = format!("{:?} {:?}", db.once, Mode::Leased.layer(&db));
    assert!(!shown.contains("correct horse"), "{shown}");
    gate.open();
    patient(first).await.unwrap();
}
