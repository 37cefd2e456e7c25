//! The three isolation levels.

use std::time::Duration;

use pgonce::{ErrorKind, Failure, Fingerprint, Inbox, Lease, Listed, OnLapse, Operation, Received};
use pgonce::{Recovery, Response, Work};
use sqlx::postgres::PgPoolOptions;
use sqlx::{Connection, PgPool};

use crate::support::db::{TestDb, effect, on_lapse, op, started, waits, word};

const MINUTE: Duration = Duration::from_secs(60);
pub const LEVELS: [&str; 3] = ["read committed", "repeatable read", "serializable"];
const STRICT: [&str; 2] = ["repeatable read", "serializable"];

pub fn pool(db: &TestDb, level: &str) -> PgPool {
    let options = db.options.clone().options([("default_transaction_isolation", level)]);
    PgPoolOptions::new().max_connections(10).connect_lazy_with(options)
}

#[tokio::test]
async fn every_level_starts_and_replays() {
    let db = TestDb::new().await;
    for level in LEVELS {
        let pool = pool(&db, level);
        for replayed in [false, true] {
            let done = db
                .once
                .run(&pool, &op(level), async |tx| effect(tx, &db.schema, level).await)
                .await
                .unwrap();
            assert_eq!(done.is_replay(), replayed, "{level}");
            let shown: String =
                sqlx::query_scalar("show transaction_isolation").fetch_one(&pool).await.unwrap();
            assert_eq!(shown, level);
        }
    }
    assert_eq!(db.effects().await, 3);
}

#[tokio::test]
async fn a_stale_snapshot_is_told_to_run_again() {
    let db = TestDb::new().await;
    for level in STRICT {
        let pool = pool(&db, level);
        let mut tx = pool.begin().await.unwrap();
        sqlx::query("select 1").execute(&mut *tx).await.unwrap(); // takes the snapshot
        db.complete(&op(level), "done").await;
        let error = db.once.begin(&mut tx, &op(level)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Contention, "{level}");
        assert!(error.is_retryable());
        tx.rollback().await.unwrap();
        let mut again = pool.begin().await.unwrap();
        assert_eq!(word(&db.once.begin(&mut again, &op(level)).await.unwrap()), "replay");
    }
}

#[tokio::test]
async fn a_holder_that_commits_while_a_strict_caller_waits_is_never_doubled() {
    let db = TestDb::new().await;
    for level in LEVELS {
        let pool = pool(&db, level);
        let mut holder = pool.begin().await.unwrap();
        let claim = started(db.once.begin(&mut holder, &op(level)).await.unwrap());
        effect(&mut holder, &db.schema, level).await.unwrap();
        let waiter = tokio::spawn({
            let (once, pool, schema) = (db.once.clone(), pool.clone(), db.schema.clone());
            async move {
                let op = op(level).policy(waits(Duration::from_secs(30)));
                once.run(&pool, &op, async |tx| effect(tx, &schema, level).await).await
            }
        });
        db.until_waiting(1).await;
        claim.complete(&mut holder, Response::json(&1).unwrap()).await.unwrap();
        holder.commit().await.unwrap();
        assert!(waiter.await.unwrap().unwrap().is_replay(), "{level}");
    }
    assert_eq!(db.effects().await, 3);
}

#[tokio::test]
async fn storms_at_every_level_double_nothing() {
    let db = TestDb::new().await;
    for level in LEVELS {
        let pool = pool(&db, level);
        let mut tasks = tokio::task::JoinSet::new();
        for task in 0..32 {
            let (once, pool, schema) = (db.once.clone(), pool.clone(), db.schema.clone());
            tasks.spawn(async move {
                let key = format!("{level} {}", task % 4);
                let op = op(&key).policy(waits(Duration::from_secs(30)));
                once.run(&pool, &op, async |tx| effect(tx, &schema, &key).await).await
            });
        }
        let mut performed = 0;
        while let Some(done) = tasks.join_next().await {
            performed += u32::from(!done.unwrap().unwrap().is_replay());
        }
        assert_eq!(performed, 4, "{level}");
    }
    assert_eq!(db.effects().await, 12);
}

#[tokio::test]
async fn an_answer_never_aborts_the_callers_transaction() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    let print = |text: &str| op("done").fingerprint(Fingerprint::of_bytes(text));
    db.complete(&print("this"), "body").await;
    drop(db.lease(&op("lapsed"), MINUTE).await);
    db.advance(MINUTE).await;
    drop(db.lease(&op("leased"), MINUTE).await);
    let mut elsewhere = db.conn().await;
    let mut open = elsewhere.begin().await.unwrap();
    let claim = started(db.once.begin(&mut open, &op("open")).await.unwrap());
    let answers = [
        ("replay", print("this")),
        ("mismatch", print("other")),
        ("held", op("lapsed").policy(on_lapse(OnLapse::Hold))),
        ("in progress", op("leased")),
        ("in progress", op("open")),
        ("in progress", op("open").policy(waits(Duration::from_millis(20)))),
    ];
    for level in LEVELS {
        let pool = pool(&db, level);
        for (answer, op) in &answers {
            let mut tx = pool.begin().await.unwrap();
            effect(&mut tx, &db.schema, "before").await.unwrap();
            assert_eq!(word(&db.once.begin(&mut tx, op).await.unwrap()), *answer, "{level}");
            effect(&mut tx, &db.schema, "after").await.expect(answer);
            tx.commit().await.expect(answer);
        }
    }
    assert_eq!(db.effects().await, 2 * 3 * 6, "a COMMIT that rolls back is not an error");
    claim.complete(&mut open, Response::empty()).await.unwrap();
    open.commit().await.unwrap();
}

#[tokio::test]
async fn leased_work_may_write_at_every_level_between_two_heartbeats() {
    let db = TestDb::new().await;
    let minute = Lease::new(MINUTE).unwrap();
    let often = minute.heartbeat(Duration::from_millis(20)).unwrap();
    for level in LEVELS {
        let pool = &pool(&db, level);
        for (lease, longer) in [(minute, false), (often, true)] {
            let key = format!("{level}, longer than a heartbeat: {longer}");
            let op = op(&key);
            let work = async |work: &mut Work| {
                let tx = work.last_tx().await?;
                effect(tx, &db.schema, &key).await?;
                if longer {
                    let pushed = "select lease_expires_at > created_at + interval '60 s'
                                    from {}.idempotency_keys where status = 1";
                    db.until(pushed).await;
                }
                Ok::<_, Failure>(())
            };
            let done = db.once.run_leased(pool, &op, lease, work).await;
            // The heartbeat has changed the key's row after the transaction's snapshot.
            if longer && level != "read committed" {
                let error = done.unwrap_err();
                assert!(error.is_retryable(), "{key}: {error:?}");
                db.execute("delete from {}.idempotency_keys").await;
            } else {
                done.unwrap_or_else(|error| panic!("{key}: {error:?}"));
            }
        }
    }
    assert_eq!(db.effects().await, 4);
}

#[tokio::test]
async fn recoveries_share_the_work_at_every_level() {
    for level in LEVELS {
        let db = TestDb::new().await;
        crate::abandoned::abandon(&db, (0..30).map(|n| format!("k{n}"))).await;
        let one = async || {
            let (once, pool) = (db.once.clone(), pool(&db, level));
            let work = pool.clone();
            let handler = move |found: Listed| {
                let (once, pool) = (once.clone(), work.clone());
                async move {
                    let op = op(&found.key);
                    let lease = Lease::new(MINUTE).unwrap();
                    once.run_leased(&pool, &op, lease, async |_: &mut Work| Ok::<_, Failure>(()))
                        .await
                }
            };
            let done = db.until("select count(*) = 30 from {}.keys where status = 'completed'");
            let recovery = Recovery::new(&db.once, "test/%").unwrap();
            recovery
                .interval(Duration::from_millis(10))
                .unwrap()
                .run_until(pool, handler, done)
                .await
        };
        let (a, b, c) = tokio::join!(one(), one(), one());
        assert_eq!(a + b + c, 30, "{level}");
    }
}

#[tokio::test]
async fn a_message_committed_behind_a_snapshot_is_never_new() {
    let db = TestDb::new().await;
    let inbox = Inbox::new(&db.once, "orders").unwrap();
    for level in STRICT {
        let pool = pool(&db, level);
        let mut tx = pool.begin().await.unwrap();
        sqlx::query("select 1").execute(&mut *tx).await.unwrap(); // takes the snapshot
        db.complete(&Operation::new("orders", level).unwrap(), "").await;
        let error = inbox.receive(&mut tx, level).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Contention);
        tx.rollback().await.unwrap();
        let mut again = pool.begin().await.unwrap();
        let received = inbox.receive(&mut again, level).await.unwrap();
        assert!(matches!(received, Received::Seen(_)), "{level}: {received:?}");
    }
}
