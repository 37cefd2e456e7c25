//! Arguments outside their limits: every way to begin refuses the same ones in the same words, whatever is stored,
//! and before anything has run.

use std::time::Duration;

use pgonce::{
    Error, ErrorKind, Failure, Inbox, Lease, Message, Operation, Response, RunError, Verdict, Work,
};
use sqlx::PgConnection;

use crate::support::db::{PATIENCE, TestDb, op};

const HOUR: Duration = Duration::from_secs(3600);
const YEAR: Duration = Duration::from_secs(31_557_600);
const LEASE: Duration = Duration::from_secs(60);

/// Operations that must be refused, and in which words.
fn refused() -> Vec<(Operation, &'static str)> {
    let us = Duration::from_micros;
    vec![
        (op("k").retention(Duration::ZERO), "retention is 0 s; it takes 1 ms to 10 years"),
        (op("k").retention(us(999)), "retention is 999 µs; it takes 1 ms to 10 years"),
        (op("k").retention(11 * YEAR), "retention is 4017 d 18 h; it takes 1 ms to 10 years"),
        (op("k").retention(Duration::MAX), "it takes 1 ms to 10 years"),
        (op("k").wait(2 * HOUR), "wait is 2 h; it takes up to 1 h"),
        (op("k").wait(HOUR + us(1)), "wait is 1 h 1 µs; it takes up to 1 h"),
        (op("k").wait(Duration::MAX), "it takes up to 1 h"),
        (op("k").max_attempts(0), "max_attempts is 0; it takes at least 1"),
    ]
}

fn is_refused(error: &Error, words: &str, way: &str) {
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{way}: {error:?}");
    assert!(!error.is_retryable());
    assert!(error.to_string().ends_with(words), "{way}: {error}");
}

fn protocol<T: std::fmt::Debug, E>(result: Result<T, RunError<E>>) -> Error {
    match result {
        Err(RunError::Protocol(error)) => error,
        other => panic!("it was let through: {other:?}"),
    }
}

/// Before there is a key, while it is being worked on, and when it is done.
async fn in_every_state(db: &TestDb, check: impl AsyncFn(&str)) {
    check("new").await;
    let claim = db.lease(&op("k"), LEASE).await;
    check("in progress").await;
    claim.complete(&mut db.conn().await, Response::json(&()).unwrap()).await.unwrap();
    check("done").await;
}

#[tokio::test]
async fn every_way_to_begin_refuses_the_same_arguments() {
    let db = TestDb::new().await;
    let lease = Lease::new(LEASE).unwrap();
    in_every_state(&db, async |state| {
        let mut conn = db.conn().await;
        for (op, words) in refused() {
            let way = |way: &str| format!("{way}, {state}");
            let begin = db.once.begin(&mut conn, &op).await.unwrap_err();
            is_refused(&begin, words, &way("begin"));
            let begin = db.once.begin_leased(&db.pool, &op, LEASE).await.unwrap_err();
            is_refused(&begin, words, &way("begin_leased"));
            let work = async |_: &mut PgConnection| -> Result<(), Failure> { panic!("it ran") };
            is_refused(&protocol(db.once.run(&db.pool, &op, work).await), words, &way("run"));
            let work = async |_: &mut Work| -> Result<(), Failure> { panic!("it ran") };
            let run = db.once.run_leased(&db.pool, &op, lease, work).await;
            is_refused(&protocol(run), words, &way("run_leased"));
        }
    })
    .await;
}

#[tokio::test]
async fn every_way_to_begin_refuses_the_same_leases() {
    let db = TestDb::new().await;
    let minute = op("k").retention(LEASE);
    in_every_state(&db, async |state| {
        for (length, words) in [
            (Duration::ZERO, "lease is 0 s; it takes 1 ms up to the retention, 1 min"),
            (
                Duration::from_micros(999),
                "lease is 999 µs; it takes 1 ms up to the retention, 1 min",
            ),
            (2 * LEASE, "lease is 2 min; it takes 1 ms up to the retention, 1 min"),
            (Duration::MAX, "it takes 1 ms up to the retention, 1 min"),
        ] {
            let begin = db.once.begin_leased(&db.pool, &minute, length).await.unwrap_err();
            is_refused(&begin, words, state);
            let lease = match Lease::new(length) {
                Ok(lease) => lease,
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::InvalidInput);
                    continue;
                }
            };
            let work = async |_: &mut Work| -> Result<(), Failure> { panic!("it ran") };
            let run = db.once.run_leased(&db.pool, &minute, lease, work).await;
            is_refused(&protocol(run), words, state);
        }
    })
    .await;
}

// A misconfigured consumer must not put a message aside, nor acknowledge one.
#[tokio::test]
async fn an_inbox_refuses_them_and_leaves_the_message_to_be_delivered_again() {
    let db = TestDb::new().await;
    let inbox = || Inbox::new(&db.once, "orders").unwrap();
    let mut conn = db.conn().await;
    for seen in [false, true] {
        for (inbox, words) in [
            (inbox().retention(Duration::ZERO), "retention is 0 s; it takes 1 ms to 10 years"),
            (inbox().wait(2 * HOUR), "wait is 2 h; it takes up to 1 h"),
            (inbox().max_attempts(0), "max_attempts is 0; it takes at least 1"),
        ] {
            let received = inbox.receive(&mut conn, "message").await.unwrap_err();
            is_refused(&received, words, "receive");
            let received = inbox.receive_many(&mut conn, &["message", "other"]).await.unwrap_err();
            is_refused(&received, words, "receive_many");
            let failed = inbox.failed(&db.pool, "message", "no").await.unwrap_err();
            is_refused(&failed, words, "failed");
            for redelivered in [false, true] {
                let message = Message::new("message").redelivered(redelivered);
                let work = async |_: &mut PgConnection| -> Result<(), Failure> { panic!("it ran") };
                let handled = inbox.handle(&db.pool, &message, work).await;
                assert!(matches!(handled.verdict, Verdict::Retry(_)), "{:?}", handled.verdict);
                is_refused(&protocol(handled.result), words, "handle");
            }
        }
        if !seen {
            let _ = inbox().receive(&mut conn, "message").await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_default_retention_that_is_none_is_refused_too() {
    let db = TestDb::new().await;
    let once = db.once.clone().retention(Duration::ZERO);
    let run =
        once.run(&db.pool, &op("k"), async |_| -> Result<(), Failure> { panic!("it ran") }).await;
    is_refused(&protocol(run), "retention is 0 s; it takes 1 ms to 10 years", "run");
    let once = once.retention(PATIENCE);
    once.run(&db.pool, &op("k"), async |_| Ok::<_, Failure>(())).await.unwrap();
}

#[tokio::test]
async fn a_batch_of_the_reaper_has_its_limits() {
    let db = TestDb::new().await;
    let mut conn = db.conn().await;
    for limit in [0, 100_001, u32::MAX] {
        let error = db.once.reap_once(&mut conn, limit).await.unwrap_err();
        is_refused(&error, &format!("limit is {limit}; it takes 1 to 100000"), "reap_once");
    }
}

#[tokio::test]
async fn routes_refuse_them_too() {
    use crate::web::kit::{MODES, app, numbered};
    use crate::web::{post, send};
    use pgonce::web::{Answer, Idempotency};

    let db = TestDb::new().await;
    for mode in MODES {
        let layer = || mode.layer(&db);
        let key = format!("{mode:?}");
        for done in [false, true] {
            let misconfigured: [Idempotency; 3] = [
                layer().retention(Duration::ZERO),
                layer().wait(2 * HOUR),
                layer().max_attempts(0),
            ];
            for layer in misconfigured {
                let app = app(&db, layer, numbered);
                let got = send(&app.router, post(&key, "")).await;
                assert_eq!((got.status.as_u16(), got.answer), (500, Some(Answer::StoreRefused)));
                assert_eq!(got.json()["retryable"], false);
                assert_eq!(app.calls(), 0);
            }
            if !done {
                let right = send(&app(&db, layer(), numbered).router, post(&key, "")).await;
                assert_eq!(right.answer, Some(Answer::Performed));
            }
        }
    }
}
