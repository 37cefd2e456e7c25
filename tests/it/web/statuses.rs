//! Which responses of a handler are stored, and what decides.

use axum::Json;
use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use axum::routing::post as on_post;
use http::StatusCode;
use pgonce::OnLapse;
use pgonce::web::{Answer, IdempotencyLayer, OnceClaim, OnceTx, Secret, Settle};

use super::kit::{App, MODES, Mode, app, handled, keys, tx_of};
use super::{Got, post, send};
use crate::support::db::{TestDb, effect, on_lapse, tried};

pub struct Ended {
    first: Got,
    retry: Got,
    effects: i64,
    calls: u32,
}

pub async fn twice(db: &TestDb, app: &App) -> Ended {
    let key = pgonce::Key::generate();
    let before = (db.effects().await, app.calls());
    let first = send(&app.router, post(key.as_str(), "")).await;
    let retry = send(&app.router, post(key.as_str(), "")).await;
    let effects = db.effects().await - before.0;
    Ended { first, retry, effects, calls: app.calls() - before.1 }
}

impl Ended {
    /// Stored: the retry is a replay, and this many writes have stayed.
    pub fn is_kept(&self, effects: i64) {
        assert_eq!(self.first.answer, Some(Answer::Performed));
        assert!(!self.first.is_replay() && self.retry.is_replay(), "{:?}", self.retry);
        assert_eq!((self.retry.status, &self.retry.body), (self.first.status, &self.first.body));
        assert_eq!((self.effects, self.calls), (effects, 1), "{}", self.first.status);
    }

    /// Not stored: the retry ran the handler again, and neither run has written.
    pub fn is_released(&self) {
        let answers = [self.first.answer, self.retry.answer];
        assert_eq!(answers, [Some(Answer::Released); 2], "{}", self.first.status);
        assert_eq!((self.effects, self.calls), (0, 2), "{}", self.first.status);
        assert!(!self.retry.is_replay());
    }
}

/// Every status, and some that do not exist.
fn statuses(range: std::ops::Range<u16>) -> impl Iterator<Item = StatusCode> {
    range.map(|code| StatusCode::from_u16(code).unwrap())
}

fn is_momentary(status: StatusCode) -> bool {
    matches!(status.as_u16(), 401 | 403 | 405 | 408 | 413 | 415 | 429)
}

// Trap 42. The 4xx are the handler's own here: it has written before it refuses.
#[tokio::test]
async fn successes_and_final_refusals_are_kept_and_nothing_else() {
    for mode in MODES {
        let db = TestDb::new().await;
        for status in statuses(200..208).chain(statuses(300..309)) {
            // These are tested in omitted.rs.
            if !matches!(status.as_u16(), 206 | 304) {
                twice(&db, &app(&db, mode.layer(&db), move |_| status)).await.is_kept(1);
            }
        }
        for status in statuses(400..452) {
            let ended = twice(&db, &app(&db, mode.layer(&db), move |_| status)).await;
            if is_momentary(status) { ended.is_released() } else { ended.is_kept(0) }
        }
        for status in statuses(500..512) {
            twice(&db, &app(&db, mode.layer(&db), move |_| status)).await.is_released();
        }
    }
}

// Trap 57. An interim response is never the answer to a request.
#[tokio::test]
async fn an_interim_status_is_not_an_outcome() {
    for mode in MODES {
        let db = TestDb::new().await;
        for status in statuses(100..104) {
            twice(&db, &app(&db, mode.layer(&db), move |_| status)).await.is_released();
        }
    }
}

// Trap 42. Stripe's first version stores a 500 too.
#[tokio::test]
async fn a_route_may_keep_server_errors() {
    for mode in MODES {
        let db = TestDb::new().await;
        for status in statuses(500..512) {
            let keeps = mode.layer(&db).store_server_errors();
            twice(&db, &app(&db, keeps, move |_| status)).await.is_kept(0);
        }
        let status = StatusCode::TOO_MANY_REQUESTS;
        let keeps = mode.layer(&db).store_server_errors();
        twice(&db, &app(&db, keeps, move |_| status)).await.is_released();
    }
}

// Trap 42.
#[tokio::test]
async fn a_route_may_have_its_own_rule() {
    for mode in MODES {
        let db = TestDb::new().await;
        let own = |db| mode.layer(db).final_statuses(|status| matches!(status.as_u16(), 401 | 503));
        for (status, kept) in [(401, true), (503, true), (402, false), (500, false)] {
            let status = StatusCode::from_u16(status).unwrap();
            let ended = twice(&db, &app(&db, own(&db), move |_| status)).await;
            if kept { ended.is_kept(0) } else { ended.is_released() }
        }
        twice(&db, &app(&db, own(&db), |_| StatusCode::OK)).await.is_kept(1);
    }
}

// Trap 43. The same statuses before the handler acts, as from an extractor.
#[tokio::test]
async fn a_refusal_before_the_handler_acts_leaves_the_key_free() {
    for mode in MODES {
        let db = TestDb::new().await;
        for status in [400, 402, 404, 409, 422] {
            let status = StatusCode::from_u16(status).unwrap();
            let refuses = handled(mode.layer(&db), move |_, request: Request| async move {
                // Taken, but not used yet.
                let _tx = OnceTx::of(request.extensions());
                let _claim = OnceClaim::of(request.extensions());
                status.into_response()
            });
            twice(&db, &refuses).await.is_released();
            assert_eq!(keys_in_progress(&db).await, 0);
        }
    }
}

async fn keys_in_progress(db: &TestDb) -> i64 {
    db.ask("select count(*) from {}.keys where claim = 'live'").await
}

// Trap 43. axum's extractor: a body that is no JSON, JSON of another shape, or another content type.
#[tokio::test]
async fn what_an_extractor_rejects_leaves_the_key_free() {
    #[derive(serde::Deserialize)]
    struct Payment {
        amount: i64,
    }
    let db = TestDb::new().await;
    let schema = db.schema.clone();
    // The transaction comes first, so it exists when the body is rejected.
    let pay = async move |mut tx: OnceTx, Json(payment): Json<Payment>| {
        effect(&mut tx, &schema, &payment.amount.to_string()).await.unwrap();
        StatusCode::CREATED
    };
    let charge = async |claim: OnceClaim, Json(payment): Json<Payment>| {
        let _ = claim.derived_key("charge");
        assert_eq!(payment.amount, 1);
        StatusCode::CREATED
    };
    let routers = [
        axum::Router::new().route("/", on_post(pay).layer(Mode::Transactional.layer(&db))),
        axum::Router::new().route("/", on_post(charge).layer(Mode::Leased.layer(&db))),
    ];
    for (number, router) in routers.into_iter().enumerate() {
        let request = |content_type: &'static str, body: &'static str| {
            let mut request = post(&format!("k{number}"), body);
            request.headers_mut().insert("content-type", content_type.parse().unwrap());
            request
        };
        for (content_type, body, status) in [
            ("application/json", "{", 400),
            ("application/json", r#"{"amount":"1"}"#, 422),
            ("text/plain", r#"{"amount":1}"#, 415),
        ] {
            let got = send(&router, request(content_type, body)).await;
            assert_eq!((got.status.as_u16(), got.answer), (status, Some(Answer::Released)));
        }
        // Corrected, with the same key: the rejected requests do not matter.
        let got = send(&router, request("application/json", r#"{"amount":1}"#)).await;
        assert_eq!((got.status, got.answer), (StatusCode::CREATED, Some(Answer::Performed)));
    }
    assert_eq!(db.effects().await, 1);
}

/// The same response from a handler that acts, with its own `Settle`.
fn says(db: &TestDb, idempotency: IdempotencyLayer, status: u16, settle: Settle) -> App {
    let status = StatusCode::from_u16(status).unwrap();
    app(db, idempotency, move |call| (status, settle, format!("call {call}")))
}

// Trap 44.
#[tokio::test]
async fn the_handlers_own_word_counts_for_any_status() {
    for mode in MODES {
        let db = TestDb::new().await;
        let layer = || mode.layer(&db).final_statuses(|_| unreachable!("the handler has decided"));
        for status in [200, 302, 401, 409, 422, 429, 500, 503] {
            twice(&db, &says(&db, layer(), status, Settle::Complete)).await.is_kept(1);
            twice(&db, &says(&db, layer(), status, Settle::Fail)).await.is_kept(0);
            twice(&db, &says(&db, layer(), status, Settle::Release)).await.is_released();
        }
        let finished = "select count(*) filter (where status = 'completed') = 8
                           and count(*) filter (where status = 'failed') = 8 from {}.keys
                         where status <> 'in_progress'";
        assert!(db.ask::<bool>(finished).await);
    }
}

// Trap 44. Even if the handler has not acted.
#[tokio::test]
async fn the_handlers_own_word_counts_before_it_acts() {
    for mode in MODES {
        let db = TestDb::new().await;
        let refuses = handled(mode.layer(&db), |call, _| async move {
            (StatusCode::CONFLICT, Settle::Fail, format!("call {call}")).into_response()
        });
        twice(&db, &refuses).await.is_kept(0);
    }
}

// Trap 44. A header that services put on every response means nothing here.
#[tokio::test]
async fn no_store_of_the_handler_does_not_free_the_key() {
    for mode in MODES {
        let db = TestDb::new().await;
        let no_store = || ([("cache-control", "no-store")], "done");
        twice(&db, &app(&db, mode.layer(&db), move |_| no_store())).await.is_kept(1);
    }
}

// Trap 45. It is unknown whether the remote has acted.
#[tokio::test]
async fn an_unknown_outcome_waits_for_an_operator_where_the_route_says_so() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    let hold = Mode::Leased.layer(&db).policy(on_lapse(OnLapse::Hold)).unwrap();
    let app = says(&db, hold, 504, Settle::Lapse);
    let first = send(&app.router, post("k", "")).await;
    assert_eq!((first.status.as_u16(), first.answer), (504, Some(Answer::Unknown)));
    let soon = send(&app.router, post("k", "")).await;
    assert_eq!((soon.answer, soon.header("retry-after")), (Some(Answer::InProgress), Some("1")));
    db.advance(super::kit::LEASE).await;
    for _ in 0..2 {
        let held = send(&app.router, post("k", "")).await;
        assert_eq!((held.status, held.code()), (StatusCode::CONFLICT, "held".into()));
        assert_eq!(held.json()["retryable"], false);
        assert_eq!(held.header("retry-after"), None);
    }
    assert_eq!((app.calls(), db.effects().await), (1, 0));
}

// Trap 45.
#[tokio::test]
async fn an_unknown_outcome_is_tried_again_after_the_lease_by_default() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    let app = says(&db, Mode::Leased.layer(&db).policy(tried(2)).unwrap(), 504, Settle::Lapse);
    for attempt in 1..=2 {
        let got = send(&app.router, post("k", "")).await;
        assert_eq!((got.answer, app.calls()), (Some(Answer::Unknown), attempt));
        db.advance(super::kit::LEASE).await;
    }
    // But not without end.
    let held = send(&app.router, post("k", "")).await;
    assert_eq!((held.answer, app.calls()), (Some(Answer::Held), 2));
}

// Trap 45. In one transaction nothing is unknown.
#[tokio::test]
async fn a_transactional_route_undoes_what_is_unknown() {
    let db = TestDb::new().await;
    twice(&db, &says(&db, Mode::Transactional.layer(&db), 504, Settle::Lapse)).await.is_released();
    assert_eq!(keys(&db).await, 0);
}

// Trap 46.
#[tokio::test]
async fn an_answer_without_a_body_is_an_answer() {
    for mode in MODES {
        let db = TestDb::new().await;
        for answer in [
            || StatusCode::NO_CONTENT.into_response(),
            || StatusCode::OK.into_response(),
            || StatusCode::RESET_CONTENT.into_response(),
            || Response::new(Body::from("")),
            || Json(serde_json::Value::Null).into_response(),
            || "0".into_response(),
        ] {
            twice(&db, &app(&db, mode.layer(&db), move |_| answer())).await.is_kept(1);
        }
    }
}

// Traps 37, 38. However early a handler returns, its writes and its claim go with it.
#[tokio::test]
async fn an_early_return_gives_the_key_back() {
    for mode in MODES {
        let db = TestDb::new().await;
        let schema = db.schema.clone();
        let app = handled(mode.layer(&db), move |_, request: Request| {
            let schema = schema.clone();
            async move {
                let extensions = request.into_parts().0.extensions;
                let work = async {
                    let mut tx = tx_of(&extensions).await.unwrap();
                    effect(&mut tx, &schema, "lost").await?;
                    sqlx::query("select no_such_column").execute(&mut *tx).await?;
                    Ok::<_, sqlx::Error>(StatusCode::CREATED)
                };
                work.await.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR).into_response()
            }
        });
        twice(&db, &app).await.is_released();
    }
}

// Traps 44, 61. Both apply to one response: the client gets it, the table does not.
#[tokio::test]
async fn a_secret_failure_is_kept_without_its_words() {
    for mode in MODES {
        let db = TestDb::new().await;
        let app =
            app(&db, mode.layer(&db), |_| (StatusCode::CONFLICT, Secret, Settle::Fail, "canary"));
        let ended = twice(&db, &app).await;
        assert_eq!((ended.first.status, ended.first.body), (StatusCode::CONFLICT, "canary".into()));
        assert_eq!(
            (ended.retry.status, ended.retry.answer),
            (StatusCode::CONFLICT, Some(Answer::Omitted))
        );
        assert_eq!((ended.effects, ended.calls), (0, 1));
    }
}
