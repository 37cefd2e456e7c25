//! Arguments outside their limits are refused where they are given, with a clear message. A lease longer than its key's
//! retention is refused before anything runs.

use std::time::Duration;

use pgonce::{Error, ErrorKind, Failure, Inbox, Lease, PgOnce, Policy, Response, RunError, Work};

use crate::support::db::{TestDb, kept_for, lasting, op};
use crate::web::kit::Mode;

const HOUR: Duration = Duration::from_secs(3600);
const YEAR: Duration = Duration::from_secs(31_557_600);
const LEASE: Duration = Duration::from_secs(60);

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

/// Checks a new key, a key in progress, and a finished key.
async fn in_every_state(db: &TestDb, check: impl AsyncFn(&str)) {
    check("new").await;
    let claim = db.lease(&op("k"), LEASE).await;
    check("in progress").await;
    claim.complete(&mut db.conn().await, Response::json(&()).unwrap()).await.unwrap();
    check("done").await;
}

#[test]
fn a_policy_refuses_what_is_outside_its_limits() {
    let us = Duration::from_micros;
    let new = Policy::new();
    for (refused, words) in [
        (new.retention(Duration::ZERO), "retention is 0 s; it takes 1 ms to 10 years"),
        (new.retention(us(999)), "retention is 999 µs; it takes 1 ms to 10 years"),
        (new.retention(11 * YEAR), "retention is 4017 d 18 h; it takes 1 ms to 10 years"),
        (new.retention(Duration::MAX), "it takes 1 ms to 10 years"),
        (new.failed_retention(us(1)), "failed_retention is 1 µs; it takes 1 ms to 10 years"),
        (new.wait(2 * HOUR), "wait is 2 h; it takes up to 1 h"),
        (new.wait(HOUR + us(1)), "wait is 1 h 1 µs; it takes up to 1 h"),
        (new.wait(Duration::MAX), "it takes up to 1 h"),
        (new.max_attempts(0), "max_attempts is 0; it takes at least 1"),
    ] {
        is_refused(&refused.unwrap_err(), words, "policy");
    }
    assert_eq!(Policy::default(), new);
}

#[tokio::test]
async fn every_way_to_begin_refuses_the_same_leases() {
    let db = TestDb::new().await;
    for length in [Duration::ZERO, Duration::from_micros(999)] {
        is_refused(&Lease::new(length).unwrap_err(), "it takes 1 ms up to the retention", "lease");
    }
    let minute = op("k").policy(kept_for(LEASE));
    in_every_state(&db, async |state| {
        for (length, words) in [
            (2 * LEASE, "lease is 2 min; it takes 1 ms up to the retention, 1 min"),
            (Duration::MAX, "it takes 1 ms up to the retention, 1 min"),
        ] {
            let begin = db.once.begin_leased(&db.pool, &minute, lasting(length)).await.unwrap_err();
            is_refused(&begin, words, state);
            let work = async |_: &mut Work| -> Result<(), Failure> { panic!("it ran") };
            let run = db.once.run_leased(&db.pool, &minute, lasting(length), work).await;
            is_refused(&protocol(run), words, state);
        }
    })
    .await;
}

#[test]
fn an_inbox_refuses_a_lease_above_its_retention_and_pauses_outside_their_limits() {
    let inbox = || Inbox::new(&PgOnce::new(), "orders").unwrap();
    for (refused, words) in [
        (
            inbox().lease(lasting(8 * 24 * HOUR)),
            "lease is 8 d; it takes 1 ms up to the retention, 7 d",
        ),
        (
            inbox().policy(kept_for(Duration::from_secs(9))),
            "lease is 10 s; it takes 1 ms up to the retention, 9 s",
        ),
        (inbox().pauses(Duration::ZERO, HOUR), "first pause is 0 s; it takes 1 ms to one day"),
        (inbox().pauses(HOUR, 25 * HOUR), "longest pause is 1 d 1 h; it takes 1 ms to one day"),
        (inbox().pauses(HOUR, LEASE), "first pause is 1 h; it takes up to the longest, 1 min"),
    ] {
        is_refused(&refused.unwrap_err(), words, "inbox");
    }
}

// Trap 31. No time left means neither "without limit" nor "no lease".
#[tokio::test]
async fn a_layer_refuses_a_lease_above_its_retention_whichever_comes_first() {
    let db = TestDb::new().await;
    let layer = || Mode::Transactional.layer(&db).policy(kept_for(LEASE)).unwrap();
    let words = "lease is 2 min; it takes 1 ms up to the retention, 1 min";
    is_refused(&layer().leased(lasting(2 * LEASE)).unwrap_err(), words, "leased");
    let leased = layer().policy(kept_for(HOUR)).unwrap().leased(lasting(2 * LEASE)).unwrap();
    is_refused(&leased.policy(kept_for(LEASE)).unwrap_err(), words, "policy");
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

#[test]
fn a_key_from_json_has_the_same_limits() {
    let key: pgonce::Key = serde_json::from_str("\"order-17\"").unwrap();
    assert_eq!(serde_json::to_string(&key).unwrap(), "\"order-17\"");
    let error = serde_json::from_str::<pgonce::Key>("\"\"").unwrap_err();
    assert!(error.to_string().starts_with("key is empty; it takes 1 to 255 bytes"), "{error}");
    assert!(serde_json::from_str::<pgonce::Scope>("\"a\\u0007\"").is_err());
}
