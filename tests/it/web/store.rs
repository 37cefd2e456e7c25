//! A database that is missing, or not as it should be.

use std::time::Duration;

use axum::response::IntoResponse;
use http::StatusCode;
use pgonce::web::{Answer, OnceClaim};
use pgonce_testing::{Options, Throwaway};
use sqlx::PgPool;
use sqlx::postgres::PgConnectOptions;

use super::kit::{App, MODES, Mode, app, closed_pool, handled, keys, numbered, patient, pool};
use super::{Got, layer, post, send};
use crate::support::db::{TestDb, lasting, started};
use crate::support::metrics::Metrics;

const SOON: Duration = Duration::from_millis(100);

fn over(mut db: TestDb, pool: PgPool) -> TestDb {
    db.pool = pool;
    db
}

fn is_unavailable(got: &Got) {
    assert_eq!((got.status, got.code()), (StatusCode::SERVICE_UNAVAILABLE, "unavailable".into()));
    assert_eq!((got.header("retry-after"), &got.json()["retryable"]), (Some("1"), &true.into()));
}

fn is_refused(got: &Got) {
    assert_eq!(
        (got.status, got.code()),
        (StatusCode::INTERNAL_SERVER_ERROR, "store_refused".into())
    );
    assert_eq!((got.header("retry-after"), &got.json()["retryable"]), (None, &false.into()));
}

fn pool_with(db: &TestDb, options: PgConnectOptions) -> PgPool {
    let pool = pool(db, |pool| pool.acquire_timeout(SOON));
    pool.set_connect_options(options);
    pool
}

// Trap 39.
#[tokio::test]
async fn without_a_database_nothing_runs() {
    for mode in MODES {
        let db = TestDb::new().await;
        let nowhere = db.options.clone().socket("/nonexistent").port(1);
        let taken = pool(&db, |pool| pool.max_connections(1).acquire_timeout(SOON));
        let _taken = taken.acquire().await.unwrap();
        let pools = [closed_pool(&db).await, pool_with(&db, nowhere), taken.clone()];
        let mut db = db;
        for pool in pools {
            db = over(db, pool);
            let app = app(&db, mode.layer(&db), numbered);
            is_unavailable(&send(&app.router, post("k", "")).await);
            assert_eq!((app.calls(), db.effects().await, keys(&db).await), (0, 0, 0));
        }
    }
}

// Trap 39. Also if it goes away while the service runs.
#[tokio::test]
async fn when_the_server_stops_nothing_runs() {
    let server = Throwaway::start(&Options::new().fast()).await.expect("a PostgreSQL");
    let db = TestDb::open("stopped", server.connect_options(), 2).await;
    db.once.migrate(&mut db.conn().await).await.unwrap();
    db.execute("create table {}.effect (id bigint generated always as identity, key text)").await;
    let options = db.options.clone();
    let pool = pool_with(&db, options);
    let db = over(db, pool);
    let apps = MODES.map(|mode| app(&db, mode.layer(&db), numbered));
    for (number, app) in apps.iter().enumerate() {
        let got = send(&app.router, post(&format!("k{number}"), "")).await;
        assert_eq!(got.answer, Some(Answer::Performed));
    }
    server.stop().await;
    for (number, app) in apps.iter().enumerate() {
        is_unavailable(&send(&app.router, post(&format!("k{number}"), "")).await);
        is_unavailable(&send(&app.router, post("new", "")).await);
        assert_eq!(app.calls(), 1);
    }
}

// Trap 39.
#[tokio::test]
async fn a_database_that_takes_no_writes_is_as_good_as_none() {
    for mode in MODES {
        let db = TestDb::new().await;
        let options = db.options.clone().options([("default_transaction_read_only", "on")]);
        let read_only = pool_with(&db, options);
        let app = app(&db, mode.layer(&db), numbered);
        let stored = send(&app.router, post("old", "")).await;
        let replica = over(db, read_only);
        let replica = super::kit::app(&replica, mode.layer(&replica), numbered);
        is_unavailable(&send(&replica.router, post("new", "")).await);
        // A finished key can be replayed all the same.
        let replay = send(&replica.router, post("old", "")).await;
        assert_eq!((replay.is_replay(), replay.body), (true, stored.body));
        assert_eq!(replica.calls(), 0);
    }
}

// Trap 39.
#[tokio::test]
async fn without_the_schema_nothing_runs() {
    for mode in MODES {
        let db = TestDb::new().await;
        let app = app(&db, mode.layer(&db), numbered);
        db.execute("drop function {}._lock_id").await;
        is_refused(&send(&app.router, post("k", "")).await);
        assert_eq!((app.calls(), db.effects().await), (0, 0));
    }
}

// Trap 39. By choice, and then counted and distinguishable.
#[tokio::test]
async fn a_route_that_fails_open_runs_unprotected() {
    let metrics = Metrics::of_thread();
    for mode in MODES {
        let db = TestDb::new().await;
        let idempotency = mode.layer(&db).fail_open();
        let app = app(&db, idempotency.clone(), numbered);
        db.execute("drop function {}._lock_id").await;
        let before = metrics.answered(Answer::Unprotected);
        for call in 1..=2 {
            let got = send(&app.router, post("k", "")).await;
            assert_eq!((got.status, got.answer), (StatusCode::CREATED, Some(Answer::Unprotected)));
            // The handler has its transaction, and its writes stay.
            assert_eq!(db.effects().await, call);
        }
        assert_eq!(metrics.answered(Answer::Unprotected), before + 2);
        let pool = closed_pool(&db).await;
        let db = over(db, pool);
        let elsewhere = handled(mode.layer(&db).fail_open(), |call, request| async move {
            // No attempt, as without a key; otherwise as usual.
            assert_eq!(OnceClaim::of(request.extensions()).unwrap().attempt(), 0);
            numbered(call).into_response()
        });
        let got = send(&elsewhere.router, post("k", "")).await;
        assert_eq!((got.status, got.answer), (StatusCode::CREATED, Some(Answer::Unprotected)));
        assert_eq!(db.effects().await, 2);
    }
}

// Trap 39. The layer fails open; a handler that needs its transaction reports that it has none.
#[tokio::test]
async fn an_unprotected_handler_that_needs_its_transaction_answers_503() {
    let db = TestDb::new().await;
    let pool = closed_pool(&db).await;
    let db = over(db, pool);
    let route =
        axum::routing::post(async |_: pgonce::web::OnceTx| "paid").layer(layer(&db).fail_open());
    let got = send(&axum::Router::new().route("/", route), post("k", "")).await;
    assert_eq!(
        (got.status, got.answer),
        (StatusCode::SERVICE_UNAVAILABLE, Some(Answer::Unprotected))
    );
}

// Traps 39, 59. The database answered, and refused.
#[tokio::test]
async fn failing_open_is_for_a_database_that_cannot_be_asked_only() {
    for mode in MODES {
        let db = TestDb::new().await;
        let app = app(&db, mode.layer(&db).fail_open(), numbered);
        assert_eq!(send(&app.router, post("k", "")).await.answer, Some(Answer::Performed));
        db.execute("update {}.idempotency_keys set status = 7").await;
        is_refused(&send(&app.router, post("k", "")).await);
        assert_eq!((app.calls(), db.effects().await), (1, 1));
    }
}

/// An application over a database whose only key was finished by this statement.
async fn planted(mode: Mode, finish: &str) -> (TestDb, App) {
    let db = TestDb::new().await;
    let app = app(&db, mode.layer(&db), numbered);
    let op = pgonce::Operation::new("acme/test", "k").unwrap();
    let mut conn = db.conn().await;
    let claim =
        started(db.once.begin_leased(&db.pool, &op, lasting(super::kit::LEASE)).await.unwrap());
    claim.complete(&mut conn, pgonce::Response::empty()).await.unwrap();
    db.execute(&format!("update {{}}.idempotency_keys set {finish}")).await;
    (db, app)
}

// Trap 59. Neither replayed in part nor run again, and not "in progress" without end.
#[tokio::test]
async fn a_corrupt_stored_response_is_an_error_every_time() {
    for mode in MODES {
        for corrupt in [
            "response_code = 99",
            "response_code = 0",
            "response_code = -1",
            "response_code = 100",
            "response_code = 1000",
            "response_code = 65736", // 200 in its low sixteen bits
            "response_code = 2147483647",
            "response_headers = 'content-type: text/plain'",
            "response_headers = E'pgonce headers 2\\r\\n'",
            "response_headers = E'pgonce headers 1\\n'",
            "response_headers = E'pgonce headers 1\\r\\ncontent-type: text/plain'",
            "response_headers = E'pgonce headers 1\\r\\ncontent-type\\r\\n'",
            "response_headers = E'pgonce headers 1\\r\\n: x\\r\\n'",
            "response_headers = E'pgonce headers 1\\r\\nbad name: x\\r\\n'",
            "response_headers = E'pgonce headers 1\\r\\netag: a\\nb\\r\\n'",
            "response_headers = E'pgonce headers 1\\r\\netag: a\\r\\n\\r\\n'",
            "response_omitted = true, response_code = 42",
        ] {
            let (db, app) = planted(mode, corrupt).await;
            for _ in 0..2 {
                let got = send(&app.router, post("k", "")).await;
                is_refused(&got);
                assert!(!got.is_replay(), "{corrupt}");
            }
            assert_eq!((app.calls(), db.effects().await), (0, 0), "{corrupt}");
        }
    }
}

// Trap 60. Completed by code without HTTP: a worker, or plain SQL.
#[tokio::test]
async fn a_key_that_was_completed_elsewhere_is_a_success() {
    for mode in MODES {
        for (finish, status, body) in [
            ("response_code = null", 200, ""),
            ("response_body = 'done'", 200, "done"),
            ("response_code = 202, response_body = 'later'", 202, "later"),
            ("response_headers = '', response_body = ''", 200, ""),
            ("status = 3, response_code = 409", 409, ""),
        ] {
            let (_db, app) = planted(mode, finish).await;
            let got = send(&app.router, post("k", "")).await;
            assert_eq!((got.status.as_u16(), got.body), (status, body.into()), "{finish}");
            assert_eq!(got.headers.get("idempotent-replayed").unwrap(), "true");
            assert_eq!((got.headers.get("content-type"), app.calls()), (None, 0));
        }
        let (_db, app) = planted(mode, "response_omitted = true").await;
        let got = patient(send(&app.router, post("k", ""))).await;
        assert_eq!((got.status, got.code(), app.calls()), (StatusCode::OK, "omitted".into(), 0));
    }
}
