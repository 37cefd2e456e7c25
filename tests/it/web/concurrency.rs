//! Many concurrent requests with one key.

use std::time::Duration;

use axum::response::IntoResponse;
use http::StatusCode;
use pgonce::web::Answer;
use tokio::task::{JoinHandle, JoinSet};

use super::kit::{App, Gate, MODES, Mode, app, gated, handled, numbered, patient, tx_of};
use super::{Got, post, send};
use crate::support::db::{PATIENCE, TestDb, effect, kept_for, waits};

/// Sends a request in its own task.
pub fn sent(app: &App, key: &str, body: &'static str) -> JoinHandle<Got> {
    let (router, request) = (app.router.clone(), post(key, body));
    tokio::spawn(async move { send(&router, request).await })
}

// Trap 24.
#[tokio::test]
async fn of_many_at_once_one_performs_and_all_get_its_answer() {
    for mode in MODES {
        let db = TestDb::with_connections(5).await;
        let app =
            app(&db, mode.layer(&db).policy(waits(PATIENCE)).unwrap().waiters_max(100), numbered);
        let mut requests = JoinSet::new();
        for _ in 0..30 {
            let router = app.router.clone();
            requests.spawn(async move { send(&router, post("k", "")).await });
        }
        let got = patient(requests.join_all()).await;
        let first = &got[0];
        assert!(got.iter().all(|got| got.body == first.body && got.status == StatusCode::CREATED));
        assert_eq!(got.iter().filter(|got| got.is_replay()).count(), 29);
        assert_eq!(db.effects().await, 1);
        // A look may be older than its lock: then a handler runs for a finished key, and is rolled back.
        assert!(app.calls() == 1 || mode == Mode::Transactional, "{mode:?}");
    }
}

// Trap 25. The row that the waiter waits for disappears. The waiter begins the key itself, and does not run
// unprotected.
#[tokio::test]
async fn a_waiter_performs_when_the_first_gives_up() {
    for mode in MODES {
        let db = TestDb::new().await;
        let (gate, schema) = (Gate::new(), db.schema.clone());
        let idempotency = mode.layer(&db).policy(waits(PATIENCE)).unwrap();
        let stops = gate.clone();
        let app = handled(idempotency, move |call, request| {
            let (gate, schema) = (stops.clone(), schema.clone());
            async move {
                let mut tx = tx_of(request.extensions()).await.unwrap();
                effect(&mut tx, &schema, "done").await.unwrap();
                if call == 1 {
                    gate.pass().await;
                    return StatusCode::INTERNAL_SERVER_ERROR.into_response();
                }
                numbered(call).into_response()
            }
        });
        let first = sent(&app, "k", "");
        gate.entered().await;
        let waiters = [sent(&app, "k", ""), sent(&app, "k", "")];
        gate.open();
        assert_eq!(patient(first).await.unwrap().answer, Some(Answer::Released));
        let mut answers = Vec::new();
        for waiter in waiters {
            let got = patient(waiter).await.unwrap();
            assert_eq!(got.body, "call 2");
            answers.push(got.answer.unwrap());
        }
        answers.sort_by_key(|answer| answer.code());
        assert_eq!(answers, [Answer::Performed, Answer::Replayed]);
        assert_eq!(db.effects().await, 1);
    }
}

// Trap 26. Soon at first; later, the longer the claim has been live, but not beyond its lease. An open transaction has
// no lease.
#[tokio::test]
async fn a_duplicate_in_flight_is_told_when_to_come_back() {
    for mode in MODES {
        let db = TestDb::new().await;
        db.stop_clock().await;
        let gate = Gate::new();
        let app = gated(&db, mode.layer(&db), &gate);
        let first = sent(&app, "k", "");
        gate.entered().await;
        for (passed, pause) in
            [(0, "1"), (900, "1"), (1_600, "2"), (1_500, "4"), (14_500, "5"), (38_500, "3")]
        {
            db.advance(Duration::from_millis(passed)).await;
            let got = send(&app.router, post("k", "")).await;
            assert_eq!((got.status, got.code()), (StatusCode::CONFLICT, "in_progress".into()));
            assert_eq!(got.json()["retryable"], true);
            let pause = if mode == Mode::Leased { pause } else { "1" };
            assert_eq!(got.header("retry-after"), Some(pause), "{mode:?}");
        }
        gate.open();
        assert_eq!(patient(first).await.unwrap().answer, Some(Answer::Performed));
    }
}

// Trap 26. 50 duplicates of one slow key, with one pool connection left for all of them.
#[tokio::test]
async fn waiters_are_few_and_leave_the_pool_to_others() {
    for mode in MODES {
        let db = TestDb::with_connections(2).await;
        let gate = Gate::new();
        let idempotency = mode.layer(&db).policy(waits(PATIENCE)).unwrap().waiters_max(8);
        let slow = gated(&db, idempotency.clone(), &gate);
        let quick = app(&db, idempotency, numbered);
        let first = sent(&slow, "slow", "");
        gate.entered().await;
        let mut duplicates: JoinSet<Got> = JoinSet::new();
        for _ in 0..50 {
            let router = slow.router.clone();
            duplicates.spawn(async move { send(&router, post("slow", "")).await });
        }
        // Duplicates beyond the limit are answered while the first still works.
        for _ in 0..42 {
            let got = patient(duplicates.join_next()).await.unwrap().unwrap();
            assert_eq!(got.answer, Some(Answer::InProgress));
        }
        // Other keys are answered too, while eight duplicates wait.
        for key in ["one", "two", "three"] {
            let got = patient(send(&quick.router, post(key, ""))).await;
            assert_eq!(got.answer, Some(Answer::Performed));
        }
        assert_eq!(duplicates.len(), 8, "they still wait");
        gate.open();
        assert_eq!(patient(first).await.unwrap().answer, Some(Answer::Performed));
        let got = patient(duplicates.join_all()).await;
        assert!(got.iter().all(|got| got.is_replay() && got.body == "call 1"));
        // The waiters' places are free again.
        let next = sent(&slow, "next", "");
        gate.entered().await;
        let waiter = sent(&slow, "next", "");
        gate.open();
        assert_eq!(patient(next).await.unwrap().answer, Some(Answer::Performed));
        assert!(patient(waiter).await.unwrap().is_replay());
    }
}

// Traps 27, 28. The waiter's time is up, or its client is gone.
#[tokio::test]
async fn a_waiter_that_gives_up_leaves_the_claim_alone() {
    for mode in MODES {
        let db = TestDb::new().await;
        let gate = Gate::new();
        let idempotency = mode.layer(&db);
        let slow = gated(&db, idempotency.clone(), &gate);
        let first = sent(&slow, "k", "");
        gate.entered().await;
        let soon = app(
            &db,
            idempotency.clone().policy(waits(Duration::from_millis(30))).unwrap(),
            numbered,
        );
        assert_eq!(send(&soon.router, post("k", "")).await.answer, Some(Answer::InProgress));
        let late = app(&db, idempotency.policy(waits(PATIENCE)).unwrap(), numbered);
        let gone = sent(&late, "k", "");
        // It waits already or is about to; neither may do harm.
        tokio::task::yield_now().await;
        gone.abort();
        assert_eq!(send(&soon.router, post("k", "")).await.answer, Some(Answer::InProgress));
        gate.open();
        assert_eq!(patient(first).await.unwrap().answer, Some(Answer::Performed));
        assert!(send(&soon.router, post("k", "")).await.is_replay());
        assert_eq!((soon.calls(), late.calls(), db.effects().await), (0, 0, 1));
        assert_eq!(db.ask::<i32>("select max(attempt) from {}.keys").await, 1);
    }
}

// Trap 29.
#[tokio::test]
async fn the_layers_own_answers_change_nothing_in_the_table() {
    const TABLE: &str = "select coalesce(string_agg(k::text, '|'), '') from {}.idempotency_keys k";
    for mode in MODES {
        let db = TestDb::new().await;
        let gate = Gate::new();
        let idempotency = mode.layer(&db).request_bytes_max(4);
        let slow = gated(&db, idempotency.clone(), &gate);
        let other = app(&db, idempotency, numbered);
        let first = sent(&slow, "k", "100");
        gate.entered().await;
        let refuse = async |allowed: &[Answer]| {
            let before: String = db.ask(TABLE).await;
            for (key, body) in [("k", "100"), ("k", "200"), ("k", "12345"), ("bad,key", "")] {
                let got = send(&other.router, post(key, body)).await;
                assert!(allowed.contains(&got.answer.unwrap()), "{got:?}");
            }
            assert_eq!(db.ask::<String>(TABLE).await, before);
        };
        let malformed = [Answer::RequestTooLarge, Answer::KeyMalformed, Answer::Mismatch];
        refuse(&[malformed.as_slice(), &[Answer::InProgress]].concat()).await;
        gate.open();
        assert_eq!(patient(first).await.unwrap().answer, Some(Answer::Performed));
        refuse(&[malformed.as_slice(), &[Answer::Replayed]].concat()).await;
        assert_eq!((other.calls(), db.effects().await), (0, 1));
    }
}

// Traps 30, 31, 64. Lease and retention are two times by the database's clock, and neither is ever missing.
#[tokio::test]
async fn lease_and_retention_are_two_times() {
    for mode in MODES {
        let db = TestDb::new().await;
        db.stop_clock().await;
        let gate = Gate::new();
        let app =
            gated(&db, mode.layer(&db).policy(kept_for(Duration::from_secs(3600))).unwrap(), &gate);
        let first = sent(&app, "k", "");
        gate.entered().await;
        if mode == Mode::Leased {
            let times = "select lease_expires_at - created_at = interval '60 s'
                            and expires_at - created_at = interval '1 h' from {}.idempotency_keys";
            assert!(db.ask::<bool>(times).await);
        }
        gate.open();
        patient(first).await.unwrap();
        let retention = "select expires_at - created_at = interval '1 h' from {}.idempotency_keys";
        assert!(db.ask::<bool>(retention).await);
    }
}

// Trap 33. A begin that lost against another transaction has run nothing, so it is repeated.
#[tokio::test]
async fn a_begin_that_lost_a_race_is_sent_again_a_few_times() {
    for mode in MODES {
        for (losses, answer) in [(19, Answer::Performed), (20, Answer::Unavailable)] {
            let db = TestDb::new().await;
            db.execute(&format!(
                "create sequence {{}}.begins;
                 alter function {{}}._lock_id(text, text) rename to lock_id;
                 create function {{}}._lock_id(p_scope text, p_key text)
                   returns bigint language plpgsql as $$ begin
                     if nextval('{{}}.begins') <= {losses} then
                       raise exception 'lost' using errcode = '40001';
                     end if; return {{}}.lock_id(p_scope, p_key); end $$"
            ))
            .await;
            let app = app(&db, mode.layer(&db), numbered);
            let got = send(&app.router, post("k", "")).await;
            assert_eq!(got.answer, Some(answer), "{mode:?}");
            assert_eq!(app.calls(), u32::from(answer == Answer::Performed));
        }
    }
}
