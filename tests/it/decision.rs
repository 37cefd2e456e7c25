//! The decision table of begin, row by row.

use std::time::Duration;

use pgonce::{
    Begin, Fingerprint, FingerprintSecret, Finished, HeldBecause, OnLapse, Operation, Response,
};

use crate::support::db::{TestDb, lasting, on_lapse, op, started, tried, word};

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);

#[derive(Debug, Clone, Copy, PartialEq)]
enum Row {
    Absent,
    Completed,
    Failed,
    Live,
    Lapsed,
    Released,
    ForgottenCompleted,
    ForgottenLapsed,
    /// Past its retention, but taken over shortly before, so its lease is still live.
    ForgottenLive,
}
use Row::*;

/// The begin's fingerprint, compared with the stored one.
#[derive(Debug, Clone, Copy)]
enum Print {
    Equal,
    Differs,
    Missing,
    NoneStored,
    OtherAlgorithm,
}
use Print::*;

const ROWS: [Row; 9] = [
    Absent,
    Completed,
    Failed,
    Live,
    Lapsed,
    Released,
    ForgottenCompleted,
    ForgottenLapsed,
    ForgottenLive,
];
const PRINTS: [Print; 5] = [Equal, Differs, Missing, NoneStored, OtherAlgorithm];

/// The protocol's table, written independently of the SQL.
fn expected(row: Row, print: Print, policy: OnLapse) -> &'static str {
    match (row, print, policy) {
        (Absent | Released | ForgottenCompleted | ForgottenLapsed, _, _) => "started",
        (_, Differs, _) => "mismatch",
        (Completed | Failed, _, _) => "replay",
        (Live | ForgottenLive, _, _) => "in progress",
        (Lapsed, _, OnLapse::Retry) => "started",
        (Lapsed, _, OnLapse::Hold) => "held",
    }
}

async fn prepare(db: &TestDb, row: Row, op: &Operation) {
    let mut conn = db.conn().await;
    match row {
        Absent => {}
        Completed | ForgottenCompleted => {
            db.complete(op, "body").await;
        }
        Failed => {
            let claim = started(db.once.begin(&mut conn, op).await.unwrap());
            claim.fail(&mut conn, Response::bytes("body")).await.unwrap();
        }
        Live | Lapsed | ForgottenLapsed => drop(db.lease(op, MINUTE).await),
        Released => db.lease(op, MINUTE).await.release(&mut conn).await.unwrap(),
        ForgottenLive => {
            drop(db.lease(op, MINUTE).await);
            db.advance(DAY - MINUTE).await;
            drop(db.lease(op, 2 * MINUTE).await);
            db.advance(MINUTE + Duration::from_secs(1)).await;
        }
    }
    match row {
        Lapsed => db.advance(MINUTE).await,
        ForgottenCompleted | ForgottenLapsed => db.advance(DAY).await,
        _ => {}
    }
}

#[tokio::test]
async fn begin_answers_as_the_decision_table_says() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    let secret = FingerprintSecret::new("0123456789abcdef").unwrap();
    let stored = Fingerprint::of_bytes("request");
    let mut n = 0;
    for row in ROWS {
        for print in PRINTS {
            for policy in [OnLapse::Retry, OnLapse::Hold] {
                n += 1;
                let plain = op(&format!("case-{n}"));
                let first = match print {
                    NoneStored => plain.clone(),
                    _ => plain.clone().fingerprint(stored),
                };
                prepare(&db, row, &first).await;
                let second = match print {
                    Equal | NoneStored => plain.fingerprint(stored),
                    Differs => plain.fingerprint(Fingerprint::of_bytes("another request")),
                    Missing => plain,
                    OtherAlgorithm => plain.fingerprint(secret.of_bytes("another request")),
                }
                .policy(on_lapse(policy));
                let before: String = db.ask(&digest(n)).await;
                let _conn = db.conn().await;
                let answer =
                    db.once.begin_leased(&db.pool, &second, lasting(MINUTE)).await.unwrap();
                assert_eq!(
                    word(&answer),
                    expected(row, print, policy),
                    "{row:?} {print:?} {policy:?}"
                );
                let after: String = db.ask(&digest(n)).await;
                let wrote = before != after;
                assert_eq!(
                    wrote,
                    word(&answer) == "started",
                    "only a started claim writes: {row:?} {print:?}"
                );
                if let Begin::Replay(replay) = &answer {
                    let ended = if row == Failed { Finished::Failed } else { Finished::Completed };
                    assert_eq!(replay.status(), ended);
                    assert_eq!(replay.response().body(), b"body");
                }
            }
        }
    }
}

/// The whole row of a case with its physical position, or an empty string.
fn digest(n: u32) -> String {
    format!(
        "select coalesce((select (k.ctid, k.xmin, k.*)::text from {{}}.idempotency_keys k where key = 'case-{n}'), '')"
    )
}

#[tokio::test]
async fn a_takeover_counts_the_attempt_and_keeps_the_retention() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    let bound = op("k").fingerprint(Fingerprint::of_bytes("request"));
    let first = db.lease(&bound, MINUTE).await;
    let expires: i64 =
        db.ask("select (extract(epoch from expires_at) * 1000)::bigint from {}.keys").await;
    db.advance(MINUTE).await;
    let second = db.lease(&op("k"), MINUTE).await; // has no fingerprint
    assert_eq!((first.attempt(), second.attempt()), (1, 2));
    assert_ne!(first.token(), second.token());
    let kept: i64 =
        db.ask("select (extract(epoch from expires_at) * 1000)::bigint from {}.keys").await;
    assert_eq!(expires, kept);
    let other = op("k").fingerprint(Fingerprint::of_bytes("another request"));
    let mut conn = db.conn().await;
    assert_eq!(word(&db.once.begin(&mut conn, &other).await.unwrap()), "mismatch");
}

#[tokio::test]
async fn a_released_key_may_be_begun_with_another_request() {
    let db = TestDb::new().await;
    let mut conn = db.conn().await;
    let first = db.lease(&op("k").fingerprint(Fingerprint::of_bytes("one")), MINUTE).await;
    first.release(&mut conn).await.unwrap();
    let second = db.lease(&op("k").fingerprint(Fingerprint::of_bytes("two")), MINUTE).await;
    assert_eq!(second.attempt(), 2);
}

#[tokio::test]
async fn a_forgotten_key_starts_over_without_the_reaper() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    db.complete(&op("k").fingerprint(Fingerprint::of_bytes("one")), "body").await;
    db.advance(DAY).await;
    let again = db.lease(&op("k").fingerprint(Fingerprint::of_bytes("two")), MINUTE).await;
    assert_eq!(again.attempt(), 1);
    let left: bool = db
        .ask("select response_body is null and completed_at is null and response_code is null from {}.idempotency_keys")
        .await;
    assert!(left, "nothing of the forgotten response may be left");
}

#[tokio::test]
async fn used_up_attempts_hold_the_key_until_an_operator_releases_it() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    let op = op("k").policy(tried(2));
    let mut conn = db.conn().await;
    for _ in 0..2 {
        drop(db.lease(&op, MINUTE).await);
        db.advance(MINUTE).await;
    }
    let Begin::Held(held) = db.once.begin_leased(&db.pool, &op, lasting(MINUTE)).await.unwrap()
    else {
        panic!("expected held");
    };
    assert_eq!((held.attempt(), held.because()), (2, HeldBecause::Attempts));
    let record =
        db.once.inspect(&mut conn, op.scope(), op.key()).await.unwrap().expect("the key").record;
    db.once.revoke_claim(&mut conn, op.scope(), op.key(), &record).await.unwrap();
    assert_eq!(db.lease(&op, MINUTE).await.attempt(), 3);
}

#[tokio::test]
async fn hold_says_why() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    drop(db.lease(&op("k"), MINUTE).await);
    db.advance(MINUTE).await;
    let mut conn = db.conn().await;
    let held = db.once.begin(&mut conn, &op("k").policy(on_lapse(OnLapse::Hold))).await.unwrap();
    let Begin::Held(held) = held else { panic!("expected held, got {held:?}") };
    assert_eq!((held.attempt(), held.because()), (1, HeldBecause::Lapsed));
}

#[tokio::test]
async fn in_progress_tells_the_rest_of_the_lease() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    drop(db.lease(&op("k"), MINUTE).await);
    db.advance(Duration::from_millis(20_500)).await;
    let mut conn = db.conn().await;
    let Begin::InProgress(wait) = db.once.begin(&mut conn, &op("k")).await.unwrap() else {
        panic!("expected in progress");
    };
    assert_eq!(wait.lease_remaining(), Some(Duration::from_millis(39_500)));
    assert_eq!(wait.retry_after(), Duration::from_secs(40));
}

#[tokio::test]
async fn the_same_key_in_another_scope_is_another_operation() {
    let db = TestDb::new().await;
    db.complete(&Operation::new("tenant-a/pay", "k").unwrap(), "a").await;
    let mut conn = db.conn().await;
    let other = Operation::new("tenant-b/pay", "k").unwrap();
    assert_eq!(word(&db.once.begin(&mut conn, &other).await.unwrap()), "started");
}

#[tokio::test]
async fn keys_are_kept_byte_for_byte() {
    let db = TestDb::new().await;
    let spellings = ["key", "KEY", " key", "key ", "ke\u{301}y", "k\u{e9}y", "'k'; --", "%k_"];
    for spelling in spellings {
        db.complete(&op(spelling), spelling).await;
    }
    let mut conn = db.conn().await;
    for spelling in spellings {
        let Begin::Replay(replay) = db.once.begin(&mut conn, &op(spelling)).await.unwrap() else {
            panic!("expected a replay of {spelling:?}");
        };
        assert_eq!(replay.response().body(), spelling.as_bytes());
    }
}

#[tokio::test]
async fn an_effect_is_never_committed_without_its_key() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    let mut tx = db.pool.begin().await.unwrap();
    let claim = started(db.once.begin(&mut tx, &op("forgotten")).await.unwrap());
    crate::support::db::effect(&mut tx, &db.schema, "forgotten").await.unwrap();
    drop(claim); // the code commits without complete
    tx.commit().await.unwrap();
    db.advance(DAY - Duration::from_secs(1)).await;
    let mut conn = db.conn().await;
    let again = db.once.begin(&mut conn, &op("forgotten")).await.unwrap();
    assert_eq!(word(&again), "in progress", "the effect is there, so the work must not run again");
}
