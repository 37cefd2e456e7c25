//! One call carries the heartbeats of all due leases: none may delay the others.

use std::sync::Arc;
use std::time::Duration;

use pgonce::{Failure, Lease, Work};
use sqlx::Row;
use sqlx::postgres::PgPoolOptions;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::support::db::{PATIENCE, TestDb, lasting, op, started};
use crate::support::proxy::Proxy;

#[tokio::test]
async fn a_heartbeat_that_must_wait_starves_no_other() {
    let db = TestDb::new().await;
    let begun = Arc::new(Notify::new());
    let work = |key: &'static str, length: Duration| {
        let (once, pool, begun) = (db.once.clone(), db.pool.clone(), Arc::clone(&begun));
        async move {
            let op = op(key);
            let lease = Lease::new(length).unwrap();
            let run = once.run_leased(&pool, &op, lease, async |_: &mut Work| {
                begun.notify_one();
                std::future::pending::<Result<(), Failure>>().await
            });
            run.await
        }
    };
    let blocked = tokio::spawn(work("blocked", Duration::from_secs(2)));
    begun.notified().await;
    // The claim lapses, as if its process had stalled, and an open transaction takes it over. The loss is not visible
    // yet, and heartbeats find the row locked.
    let mut taker = db.pool.begin().await.unwrap();
    let claim = loop {
        db.execute(
            "update {}.idempotency_keys set lease_expires_at = {}._clock() - interval '1 s'",
        )
        .await;
        match db.once.begin(&mut taker, &op("blocked")).await.unwrap() {
            pgonce::Begin::InProgress(_) => {}
            begin => break started(begin),
        }
    };
    let other = tokio::spawn(work("other", Duration::from_secs(2)));
    begun.notified().await;
    // Its lease is live beyond its first term, although the first key's row is locked the whole time.
    db.until(
        "select lease_expires_at > created_at + interval '4 s' from {}.keys where key = 'other'",
    )
    .await;
    assert_eq!(db.ask::<String>("select claim from {}.keys where key = 'other'").await, "live");
    assert!(!other.is_finished() && !blocked.is_finished());
    claim.complete(&mut taker, pgonce::Response::empty()).await.unwrap();
    taker.commit().await.unwrap();
    // The waiting holder learns that it has lost its claim.
    tokio::time::timeout(PATIENCE, blocked).await.unwrap().unwrap().unwrap_err();
    other.abort();
}

/// Runs works that only wait, through the proxy, with leases of 3 s.
async fn waiting_works(db: &TestDb, proxy: &Proxy, count: usize) -> JoinSet<()> {
    let pool = PgPoolOptions::new().max_connections(10).connect_lazy_with(proxy.options());
    let lease = Lease::new(Duration::from_secs(3)).unwrap();
    let mut works = JoinSet::new();
    for number in 0..count {
        let (once, pool) = (db.once.clone(), pool.clone());
        works.spawn(async move {
            let op = op(&format!("k{number}"));
            let work = async |_: &mut Work| std::future::pending::<Result<(), Failure>>().await;
            let ended = once.run_leased(&pool, &op, lease, work).await;
            panic!("it ended: {ended:?}");
        });
    }
    works
}

/// Repeatedly counts lapsed leases, until each lease ends at least this many seconds after its begin.
async fn none_lapses(db: &TestDb, count: usize, seconds: u32) {
    let mut conn = db.conn().await;
    let question = format!(
        "select count(*) filter (where lease_expires_at < {{}}._clock()) as lapsed,
                count(*) filter (where lease_expires_at > created_at + interval '{seconds} s') as pushed
           from {{}}.idempotency_keys"
    );
    let asking = async {
        loop {
            let row = sqlx::query(db.sql(&question)).fetch_one(&mut conn).await.unwrap();
            assert_eq!(row.get::<i64, _>("lapsed"), 0);
            if row.get::<i64, _>("pushed") == count as i64 {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.expect("all leases are pushed");
}

#[tokio::test]
async fn a_thousand_works_far_from_the_server_lose_no_lease() {
    let db = TestDb::new().await;
    let proxy = Proxy::start_slow(&db, Duration::from_millis(4));
    let _works = waiting_works(&db, &proxy, 1000).await;
    none_lapses(&db, 1000, 9).await;
    let calls = proxy.requests().iter().filter(|sent| *sent == "execute").count();
    // 1000 begins, then a few calls per second for all works together.
    assert!(calls < 1000 + 100, "{calls}");
}

#[tokio::test]
async fn heartbeats_without_an_answer_go_over_another_connection_in_time() {
    let db = TestDb::new().await;
    let proxy = Proxy::start(&db, None);
    let _works = waiting_works(&db, &proxy, 20).await;
    none_lapses(&db, 20, 4).await;
    proxy.fall_silent();
    none_lapses(&db, 20, 10).await;
}

#[tokio::test]
async fn a_heartbeat_that_comes_late_does_not_revive_a_claim_that_was_given_up() {
    let db = TestDb::new().await;
    let minute = Duration::from_secs(60);
    let mut claim = db.lease(&op("k"), minute).await;
    let lapse = format!("call {{}}.lapse_leased('test/scope', 'k', '{}')", claim.token());
    db.execute(&lapse).await;
    let late = claim.extend(&db.pool, lasting(minute)).await.unwrap_err();
    assert_eq!(late.kind(), pgonce::ErrorKind::ClaimLost);
    assert_eq!(db.ask::<String>("select claim from {}.keys").await, "lapsed");
}
