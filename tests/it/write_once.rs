//! `run` on a new key: its row is written once, by the message that commits.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use pgonce::{Begin, Failure, Fingerprint, Operation, Response, RunError};
use sqlx::Connection;

use crate::crash::{nothing_is_stuck, pool_of_one};
use crate::harness::{TestDb, effect, op, word};
use crate::proxy::Proxy;

// begin; the look; the work; the end. (The first key prepares the statements.)
#[tokio::test]
async fn a_new_key_takes_four_round_trips_and_one_row_version() {
    let db = TestDb::new().await;
    let proxy = Proxy::start(&db, None);
    let pool = pool_of_one(proxy.options());
    let run = async |key: &str| {
        db.once.run(&pool, &op(key), async |tx| effect(tx, &db.schema, key).await).await.unwrap()
    };
    run("prepares").await;
    let before = proxy.requests().len();
    run("k").await;
    let requests = proxy.requests().split_off(before);
    let sent: Vec<_> = requests.iter().filter(|r| !r.is_empty() && *r != "ROLLBACK").collect();
    assert_eq!(sent.len(), 2, "{sent:?}"); // what is prepared has no text
    assert!(sent[0].starts_with("begin; ") && sent[1].ends_with("; commit and chain"), "{sent:?}");
    assert!(!format!("{sent:?}").contains("'k'"), "keys are written as digits");
    // The second row version of a table that nobody else writes to.
    let last = "select max(ctid)::text from {}.idempotency_keys";
    assert_eq!(db.ask::<String>(last).await, "(0,2)");
    nothing_is_stuck(&db).await;
}

#[tokio::test]
async fn while_the_work_runs_the_key_is_in_progress_for_others() {
    let db = TestDb::new().await;
    let work = async |tx: &mut sqlx::PgConnection| {
        let mut conn = db.conn().await;
        let mut other = conn.begin().await?;
        let begin = db.once.begin(&mut other, &op("k")).await.unwrap();
        assert_eq!(word(&begin), "in progress");
        other.rollback().await?;
        effect(tx, &db.schema, "k").await
    };
    db.once.run(&db.pool, &op("k"), work).await.unwrap();
    assert_eq!(db.effects().await, 1);
}

// Somebody who takes no lock, such as `receive`. The primary key decides, and the work is undone.
#[tokio::test]
async fn a_row_written_past_the_lock_undoes_the_work() {
    let db = TestDb::new().await;
    for ends_well in [true, false] {
        let calls = AtomicU32::new(0);
        let key = format!("k {ends_well}");
        let insert = format!(
            "insert into {{}}.idempotency_keys (created_at, expires_at, lease_expires_at, completed_at, attempt,
               status, scope, key, response_body)
             values (now(), now() + interval '1 day', now() + interval '1 day', now(), 1, 2, '{}', '{key}', '7')",
            op("k").scope().as_str()
        );
        let work = async |tx: &mut sqlx::PgConnection| {
            calls.fetch_add(1, Ordering::Relaxed);
            let id = effect(tx, &db.schema, &key).await?;
            db.execute(&insert).await;
            if ends_well { Ok(id) } else { Err(Failure::keep(Response::bytes("declined"))) }
        };
        let done = db.once.run(&db.pool, &op(&key), work).await.unwrap();
        assert!(done.is_replay());
        assert_eq!((*done, calls.into_inner(), db.effects().await), (7, 1, 0));
    }
    nothing_is_stuck(&db).await;
}

// They are written into the statement's text, or bound when they are long: what comes back is the same.
#[tokio::test]
async fn any_response_comes_back_as_it_was() {
    let db = TestDb::new().await;
    let fingerprint = Fingerprint::of_bytes("request");
    for length in [0, 1, 16_382, 16_383, 100_000] {
        let value: String = "a'\\\u{0}é$1;".chars().cycle().take(length).collect();
        let key = format!("it's $1 \\ {length}; --");
        let op = Operation::new("o'scope\\", key).unwrap().fingerprint(fingerprint);
        for replayed in [false, true] {
            let done = db
                .once
                .run(&db.pool, &op, async |_| Ok::<_, Failure>(value.clone()))
                .await
                .unwrap();
            assert_eq!((done.is_replay(), &*done), (replayed, &value), "{length}");
        }
        let other = op.fingerprint(Fingerprint::of_bytes("another"));
        let refused =
            db.once.run(&db.pool, &other, async |_| Ok::<_, Failure>(value.clone())).await;
        assert!(matches!(refused, Err(RunError::Mismatch(_))), "{length}");
    }
}

#[tokio::test]
async fn the_retention_is_the_operations_own() {
    let db = TestDb::new().await;
    let op = op("k").retention(Duration::from_secs(7200));
    db.once.run(&db.pool, &op, async |_| Ok::<_, Failure>(7)).await.unwrap();
    let kept =
        "select extract(epoch from expires_at - created_at)::bigint from {}.idempotency_keys";
    assert_eq!(db.ask::<i64>(kept).await, 7200);
    let mut conn = db.conn().await;
    let mut tx = conn.begin().await.unwrap();
    assert!(matches!(db.once.begin(&mut tx, &op).await.unwrap(), Begin::Replay(_)));
}
