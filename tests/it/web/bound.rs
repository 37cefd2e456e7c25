//! Leased handlers that fail after a remote may have been called: the key stays bound to its request.

use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::StatusCode;
use pgonce::OnLapse;
use pgonce::web::{Answer, OnceClaim, Settle};
use tower::ServiceExt;

use super::bodies::Frames;
use super::kit::{App, LEASE, Mode, handled, numbered};
use super::{post, send};
use crate::support::db::{TestDb, effect, on_lapse};

const ORDER: &str = "order A";
const OTHER: &str = "order B";

#[derive(Debug, Clone, Copy)]
enum Fails {
    Answers(u16),
    Says(u16, Settle),
    Panics,
    BreaksOff,
    CannotCommit,
}

const FAILURES: [Fails; 8] = [
    Fails::Answers(502),
    Fails::Answers(500),
    Fails::Answers(408),
    Fails::Answers(429),
    Fails::Says(409, Settle::Release),
    Fails::Panics,
    Fails::BreaksOff,
    Fails::CannotCommit,
];

/// A handler that asks for a derived key, or only opens its last transaction, and then fails in its first call.
fn fails(db: &TestDb, policy: OnLapse, how: Fails, asks: bool) -> App {
    let schema = db.schema.clone();
    handled(
        Mode::Leased.layer(db).policy(on_lapse(policy)).unwrap(),
        move |call, request: Request| {
            let schema = schema.clone();
            async move {
                let claim = OnceClaim::of(request.extensions()).unwrap();
                if asks {
                    let _key = claim.derived_key("charge");
                } else {
                    claim.begin().await.unwrap();
                }
                if call > 1 {
                    return numbered(call).into_response();
                }
                match how {
                    Fails::Answers(code) => StatusCode::from_u16(code).unwrap().into_response(),
                    Fails::Says(code, settle) => {
                        (StatusCode::from_u16(code).unwrap(), settle, "").into_response()
                    }
                    Fails::Panics => panic!("a handler's panic"),
                    Fails::BreaksOff => Response::new(Body::new(Frames::broken(b"1").declaring(2))),
                    Fails::CannotCommit => {
                        let mut tx = claim.begin().await.unwrap();
                        effect(&mut tx, &schema, "twice").await.unwrap();
                        effect(&mut tx, &schema, "twice").await.unwrap();
                        "done".into_response()
                    }
                }
            }
        },
    )
}

/// Sends a request that may end in a panic.
async fn send_once(app: &App, body: &'static str) {
    let router = app.router.clone();
    let sent = tokio::spawn(router.oneshot(post("k", body)));
    if let Err(gone) = sent.await {
        assert!(gone.is_panic());
    }
}

async fn unique_effects(db: &TestDb) {
    db.execute(
        "alter table {}.effect add constraint once unique (key) deferrable initially deferred",
    )
    .await;
}

#[tokio::test]
async fn another_request_never_gets_what_the_remote_did_for_the_first() {
    let db = TestDb::new().await;
    // The remote performs, and its response is lost. It honors keys: a known key gets the same receipt again.
    let remote = std::sync::Arc::new(std::sync::Mutex::new(std::collections::HashMap::new()));
    let app = handled(Mode::Leased.layer(&db), move |call, request: Request| {
        let remote = remote.clone();
        async move {
            let (parts, body) = request.into_parts();
            let order = axum::body::to_bytes(body, 100).await.unwrap();
            let key = OnceClaim::of(&parts.extensions).unwrap().derived_key("charge");
            let receipt: Bytes = remote.lock().unwrap().entry(key).or_insert(order).clone();
            match call {
                1 => StatusCode::BAD_GATEWAY.into_response(),
                _ => receipt.into_response(),
            }
        }
    });
    assert_eq!(send(&app.router, post("k", ORDER)).await.status, StatusCode::BAD_GATEWAY);
    let other = send(&app.router, post("k", OTHER)).await;
    assert_eq!(other.answer, Some(Answer::Mismatch), "{:?}", other.body);
    assert_eq!(send(&app.router, post("k", ORDER)).await.body, ORDER);
}

#[tokio::test]
async fn a_failure_after_the_outside_was_reached_keeps_the_key_with_its_request() {
    for asks in [true, false] {
        for how in FAILURES {
            let db = TestDb::new().await;
            unique_effects(&db).await;
            let app = fails(&db, OnLapse::Retry, how, asks);
            send_once(&app, ORDER).await;
            let other = send(&app.router, post("k", OTHER)).await;
            assert_eq!(other.answer, Some(Answer::Mismatch), "{how:?}");
            // The same request need not wait for the lease.
            let again = send(&app.router, post("k", ORDER)).await;
            assert_eq!(again.answer, Some(Answer::Performed), "{how:?}");
            assert_eq!(app.calls(), 2);
            let kept = "select last_error is not null from {}.idempotency_keys";
            assert!(db.ask::<bool>(kept).await, "operators can read how it ended");
        }
    }
}

#[tokio::test]
async fn an_operator_decides_after_such_a_failure_where_the_route_says_so() {
    for how in FAILURES {
        let db = TestDb::new().await;
        unique_effects(&db).await;
        db.stop_clock().await;
        let app = fails(&db, OnLapse::Hold, how, true);
        send_once(&app, ORDER).await;
        let soon = send(&app.router, post("k", ORDER)).await;
        assert_eq!(soon.answer, Some(Answer::InProgress), "{how:?}");
        db.advance(LEASE).await;
        for (body, answer) in [(ORDER, Answer::Held), (OTHER, Answer::Mismatch)] {
            assert_eq!(send(&app.router, post("k", body)).await.answer, Some(answer), "{how:?}");
        }
        assert_eq!(app.calls(), 1);
    }
}

/// A handler that asks for a derived key only in its first call, and fails in all calls.
fn asks_once(db: &TestDb, first: Settle) -> App {
    handled(Mode::Leased.layer(db), move |call, request: Request| async move {
        if call == 1 {
            let _key = OnceClaim::of(request.extensions()).unwrap().derived_key("charge");
            return (StatusCode::BAD_GATEWAY, first, "").into_response();
        }
        StatusCode::SERVICE_UNAVAILABLE.into_response()
    })
}

// The second attempt has called no remote. The first has, and failed or died with its process.
#[tokio::test]
async fn an_attempt_that_fails_early_does_not_free_what_an_earlier_one_has_bound() {
    for first in [Settle::Release, Settle::Lapse] {
        let db = TestDb::new().await;
        let app = asks_once(&db, first);
        send(&app.router, post("k", ORDER)).await;
        if first == Settle::Lapse {
            db.execute("update {}.idempotency_keys set lease_expires_at = {}._clock()").await;
        }
        for _ in 0..2 {
            let early = send(&app.router, post("k", ORDER)).await;
            assert_eq!(early.status, StatusCode::SERVICE_UNAVAILABLE);
            let other = send(&app.router, post("k", OTHER)).await;
            assert_eq!(other.answer, Some(Answer::Mismatch), "after {first:?}");
        }
        assert_eq!(app.calls(), 3);
    }
}

// However often the request is refused for its form: nothing has happened, and nothing is listed as abandoned.
#[tokio::test]
async fn a_failure_before_the_outside_was_reached_gives_the_key_back() {
    let db = TestDb::new().await;
    let app = handled(Mode::Leased.layer(&db), |call, _| async move {
        let status = if call < 4 { StatusCode::BAD_REQUEST } else { StatusCode::CREATED };
        status.into_response()
    });
    for body in ["malformed", "still malformed", "again"] {
        let got = send(&app.router, post("k", body)).await;
        assert_eq!(got.answer, Some(Answer::Released));
        assert_eq!(db.ask::<String>("select claim::text from {}.keys").await, "released");
    }
    assert_eq!(send(&app.router, post("k", "mended")).await.answer, Some(Answer::Performed));
}
