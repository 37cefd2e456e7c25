//! One connection carries the heartbeats of all leases: none of them may keep it.

use std::sync::Arc;
use std::time::Duration;

use pgonce::{Failure, Lease, Work};
use tokio::sync::Notify;

use crate::harness::{TestDb, op, started};

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
    // It lapses (its process stood still, say), and an open transaction takes it over: it cannot be seen
    // yet that the claim is lost, and its heartbeats find the row locked.
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
    // Past its first lease it is still live, although the first one's row is locked all the while.
    db.until(
        "select lease_expires_at > created_at + interval '4 s' from {}.keys where key = 'other'",
    )
    .await;
    assert_eq!(db.ask::<String>("select claim from {}.keys where key = 'other'").await, "live");
    assert!(!other.is_finished() && !blocked.is_finished());
    claim.complete(&mut taker, pgonce::Response::empty()).await.unwrap();
    taker.commit().await.unwrap();
    // And who waited learns that it lost.
    tokio::time::timeout(crate::harness::PATIENCE, blocked).await.unwrap().unwrap().unwrap_err();
    other.abort();
}
