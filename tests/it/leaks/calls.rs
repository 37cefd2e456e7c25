//! Calls that take a pool and commit.

use std::time::Duration;

use pgonce::{
    Failure, Inbox, Lease, Listed, Message, Operation, Policy, Reaper, Recovery, Response, Verdict,
    Work,
};
use sqlx::PgPool;
use tokio::sync::oneshot;

use super::{LEAKS, drop_begin, leave, nothing_is_left, pool};
use crate::support::db::{PATIENCE, TestDb, effect, lasting, op, started};

const LEASE: Duration = Duration::from_secs(60);

/// The state of a key, as another connection sees it.
async fn state(db: &TestDb, key: &str) -> String {
    db.ask(&format!("select coalesce(claim, status) from {{}}.keys where key = '{key}'")).await
}

/// Every call on a leased claim, with the pool left in this state before each call.
async fn leased_calls(db: &TestDb, pool: &PgPool, leave: impl AsyncFn(), how: &str) {
    for end in ["completed", "failed", "released"] {
        let key = &format!("{how} {end}");
        leave().await;
        let begun = db.once.begin_leased(pool, &op(key), lasting(LEASE)).await;
        let mut claim = started(begun.unwrap_or_else(|error| panic!("{key}: {error:?}")));
        assert_eq!(state(db, key).await, "live", "{key}");
        leave().await;
        claim.extend(pool, lasting(2 * LEASE)).await.unwrap();
        let longer = "select count(*) from {}.keys where lease_expires_at > created_at + '61 s'";
        let longer = format!("{longer} and key = '{key}'");
        assert_eq!(db.ask::<i64>(&longer).await, 1, "{key}");
        leave().await;
        match end {
            "completed" => claim.complete_leased(pool, Response::empty()).await,
            "failed" => claim.fail_leased(pool, Response::empty()).await,
            _ => claim.release_leased(pool).await,
        }
        .unwrap();
        assert_eq!(state(db, key).await, end, "{key}");
        nothing_is_left(db, key).await;
    }
}

#[tokio::test]
async fn calls_on_a_leased_claim_are_committed() {
    let db = TestDb::new().await;
    for (how, leak) in LEAKS {
        let pool = pool(&db);
        leased_calls(&db, &pool, async || leave(&db, &pool, leak).await, how).await;
    }
    let pool = pool(&db);
    leased_calls(&db, &pool, async || drop_begin(&db, &pool).await, "a dropped begin").await;
}

#[tokio::test]
async fn a_pool_all_of_whose_connections_are_left_so_is_used_all_the_same() {
    let db = TestDb::new().await;
    for (how, leak) in LEAKS {
        let pool =
            db.pool.options().clone().max_connections(4).connect_lazy_with(db.options.clone());
        let mut conns = Vec::new();
        for _ in 0..4 {
            let mut conn = pool.acquire().await.unwrap();
            let _ = sqlx::raw_sql(db.sql(leak)).execute(&mut *conn).await;
            conns.push(conn);
        }
        for mut conn in conns {
            conn.return_to_pool().await;
        }
        let claim = started(db.once.begin_leased(&pool, &op(how), lasting(LEASE)).await.unwrap());
        assert_eq!(state(&db, how).await, "live", "{how}");
        claim.release_leased(&pool).await.unwrap();
        pool.close().await;
        nothing_is_left(&db, how).await;
    }
}

#[tokio::test]
async fn what_an_inbox_says_of_a_message_is_committed() {
    let db = TestDb::new().await;
    let inbox = Inbox::new(&db.once, "orders")
        .unwrap()
        .policy(Policy::inbox().max_attempts(2).unwrap())
        .unwrap();
    for (how, leak) in LEAKS {
        let pool = pool(&db);
        let leave = async || leave(&db, &pool, leak).await;
        let count = "select attempt::bigint from {}.keys where claim = 'lapsed' and key = ";
        let attempts = async |id: &str| db.ask::<i64>(&format!("{count}'{id}'")).await;
        let (good, bad) = (format!("{how} good"), format!("{how} bad"));
        for _ in 0..2 {
            leave().await;
            let message = Message::new(&good).redelivered(true);
            let work = async |tx: &mut sqlx::PgConnection| effect(tx, &db.schema, &good).await;
            let handled = inbox.handle(&pool, &message, work).await;
            assert_eq!(handled.verdict, Verdict::Ack, "{how}: {:?}", handled.result);
            assert_eq!(state(&db, &good).await, "completed", "{how}");
            assert_eq!(crate::crash::effects_of(&db, &good).await, 1, "{how}");
        }
        nothing_is_left(&db, how).await;
        let message = Message::new(&bad).redelivered(true);
        leave().await;
        let work = async |_: &mut sqlx::PgConnection| {
            leave().await; // before the attempt is given up and the message's status is read
            Err::<(), _>("it failed")
        };
        // The work borrows the only connection, so the pool has one more.
        let two = pool.options().clone().max_connections(2).connect_lazy_with(db.options.clone());
        let handled = inbox.handle(&two, &message, work).await;
        assert!(matches!(handled.verdict, Verdict::Retry(_)), "{how}: {:?}", handled.verdict);
        assert_eq!(attempts(&bad).await, 1, "{how}");
        two.close().await;
        leave().await;
        let verdict = inbox.failed(&pool, &bad, "once more").await.unwrap();
        assert!(matches!(verdict, Verdict::DeadLetter(_)), "{how}: {verdict:?}");
        assert_eq!(attempts(&bad).await, 2, "{how}");
        nothing_is_left(&db, how).await;
    }
}

#[tokio::test]
async fn a_recovery_picks_and_finishes() {
    let db = TestDb::new().await;
    for (how, leak) in LEAKS {
        crate::abandoned::abandon(&db, [how.to_owned()]).await;
        let pool = pool(&db);
        leave(&db, &pool, leak).await;
        let (once, work_pool, left) = (db.once.clone(), db.pool.clone(), leak);
        let handler = move |found: Listed| {
            let (once, pool) = (once.clone(), work_pool.clone());
            async move {
                assert!(!left.is_empty());
                let op = Operation::new(found.scope, found.key)?;
                let lease = Lease::new(LEASE)?;
                once.run_leased(&pool, &op, lease, async |_: &mut Work| Ok::<_, Failure>(())).await
            }
        };
        let done = db.until("select every(status = 'completed') from {}.keys");
        let recovery = Recovery::new(&db.once, "test/%").unwrap();
        let recovery = recovery.interval(Duration::from_millis(10)).unwrap();
        assert_eq!(recovery.run_until(pool, handler, done).await, 1, "{how}");
        nothing_is_left(&db, how).await;
    }
}

#[tokio::test]
async fn a_background_reaper_deletes() {
    let db = TestDb::new().await;
    let lost = ("lost statements", "discard all");
    for (how, leak) in LEAKS.into_iter().chain([lost]) {
        let pool = pool(&db);
        if leak == lost.1 {
            reap_until_empty(&db, &pool).await; // prepares its statements
        }
        leave(&db, &pool, leak).await;
        db.plant_overdue(3, 0).await;
        assert_eq!(reap_until_empty(&db, &pool).await, 3, "{how}");
        nothing_is_left(&db, how).await;
    }
}

async fn reap_until_empty(db: &TestDb, pool: &PgPool) -> u64 {
    if db.ask::<i64>("select count(*) from {}.keys").await == 0 {
        db.plant_overdue(3, 0).await;
    }
    let (stop, stopped) = oneshot::channel::<()>();
    let reaper = Reaper::new(&db.once).interval(Duration::from_millis(1)).unwrap();
    let pool = pool.clone();
    let task = tokio::spawn(async move { reaper.run_until(pool, stopped).await });
    db.until("select count(*) = 0 from {}.keys").await;
    drop(stop);
    tokio::time::timeout(PATIENCE, task).await.unwrap().unwrap()
}
