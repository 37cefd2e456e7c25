//! Two callers, one key: who waits, how long, and who is next.

use std::time::{Duration, Instant};

use pgonce::{Begin, Failure, Response};
use sqlx::Connection;

use crate::support::db::{TestDb, op, started, waits, word};

const LONG: Duration = Duration::from_secs(30);

#[tokio::test]
async fn without_a_wait_a_duplicate_is_told_at_once_and_writes_nothing() {
    let db = TestDb::new().await;
    let mut holder = db.pool.begin().await.unwrap();
    let _claim = started(db.once.begin(&mut holder, &op("k")).await.unwrap());
    let mut duplicate = db.pool.begin().await.unwrap();
    let Begin::InProgress(wait) = db.once.begin(&mut duplicate, &op("k")).await.unwrap() else {
        panic!("expected in progress");
    };
    assert_eq!(wait.lease_remaining(), None, "an open transaction has no lease");
    assert_eq!(wait.retry_after(), Duration::from_secs(1));
    // The caller's transaction continues, and has no transaction id yet.
    let spent: bool = sqlx::query_scalar("select pg_current_xact_id_if_assigned() is not null")
        .fetch_one(&mut *duplicate)
        .await
        .unwrap();
    assert!(!spent);
}

#[tokio::test]
async fn a_wait_ends_with_the_holders_commit_and_replays() {
    let db = TestDb::new().await;
    let mut holder = db.pool.begin().await.unwrap();
    let claim = started(db.once.begin(&mut holder, &op("k")).await.unwrap());
    let waiter = tokio::spawn({
        let (once, pool) = (db.once.clone(), db.pool.clone());
        async move {
            let mut tx = pool.begin().await.unwrap();
            once.begin(&mut tx, &op("k").policy(waits(LONG))).await.unwrap()
        }
    });
    db.until_waiting(1).await;
    claim.complete(&mut holder, Response::bytes("done")).await.unwrap();
    holder.commit().await.unwrap();
    assert_eq!(word(&waiter.await.unwrap()), "replay");
}

#[tokio::test]
async fn a_wait_that_is_used_up_says_in_progress_and_harms_nothing() {
    let db = TestDb::new().await;
    let mut holder = db.pool.begin().await.unwrap();
    let claim = started(db.once.begin(&mut holder, &op("k")).await.unwrap());
    let mut tx = db.pool.begin().await.unwrap();
    sqlx::raw_sql("set local lock_timeout = '77s'").execute(&mut *tx).await.unwrap();
    let began = Instant::now();
    let answer =
        db.once.begin(&mut tx, &op("k").policy(waits(Duration::from_millis(50)))).await.unwrap();
    assert_eq!(word(&answer), "in progress");
    assert!(began.elapsed() >= Duration::from_millis(50));
    // The caller's transaction and settings are unchanged.
    let timeout: String =
        sqlx::query_scalar("show lock_timeout").fetch_one(&mut *tx).await.unwrap();
    assert_eq!(timeout, "77s");
    claim.complete(&mut holder, Response::empty()).await.unwrap();
    holder.commit().await.unwrap();
    assert_eq!(word(&db.once.begin(&mut tx, &op("k")).await.unwrap()), "replay");
}

#[tokio::test]
async fn a_wait_restores_the_callers_lock_timeout_when_it_gets_the_key() {
    let db = TestDb::new().await;
    let mut holder = db.pool.begin().await.unwrap();
    let claim = started(db.once.begin(&mut holder, &op("k")).await.unwrap());
    let waiter = tokio::spawn({
        let (once, pool) = (db.once.clone(), db.pool.clone());
        async move {
            let mut tx = pool.begin().await.unwrap();
            sqlx::raw_sql("set local lock_timeout = '77s'").execute(&mut *tx).await.unwrap();
            let answer = once.begin(&mut tx, &op("k").policy(waits(LONG))).await.unwrap();
            let timeout: String =
                sqlx::query_scalar("show lock_timeout").fetch_one(&mut *tx).await.unwrap();
            (word(&answer), timeout)
        }
    });
    db.until_waiting(1).await;
    drop(claim);
    holder.rollback().await.unwrap();
    assert_eq!(waiter.await.unwrap(), ("started", "77s".to_owned()));
}

#[tokio::test]
async fn a_finished_key_is_replayed_while_its_lock_is_held() {
    let db = TestDb::new().await;
    db.complete(&op("k"), "7").await;
    let mut holder = db.pool.begin().await.unwrap();
    sqlx::query(db.sql("select pg_advisory_xact_lock({}._lock_id('test/scope', 'k'))"))
        .execute(&mut *holder)
        .await
        .unwrap();
    let mut conn = db.conn().await;
    assert_eq!(word(&db.once.begin(&mut conn, &op("k")).await.unwrap()), "replay");
    for op in [op("k").policy(waits(LONG)), op("k").policy(waits(LONG)).optimistic()] {
        let began = Instant::now();
        let done = db.once.run(&db.pool, &op, async |_| Ok::<_, Failure>(8)).await.unwrap();
        assert!(done.is_replay());
        assert!(began.elapsed() < LONG / 2);
    }
}

#[tokio::test]
async fn a_collision_of_locks_costs_a_false_in_progress_and_never_a_double() {
    let db = TestDb::new().await;
    db.execute(
        "create or replace function {}._lock_id(p_scope text, p_key text) returns bigint
           language sql immutable as 'select 42::bigint'",
    )
    .await;
    let mut holder = db.pool.begin().await.unwrap();
    let claim = started(db.once.begin(&mut holder, &op("a")).await.unwrap());
    let mut conn = db.conn().await;
    assert_eq!(word(&db.once.begin(&mut conn, &op("b")).await.unwrap()), "in progress");
    claim.complete(&mut holder, Response::empty()).await.unwrap();
    holder.commit().await.unwrap();
    assert_eq!(word(&db.once.begin(&mut conn, &op("b")).await.unwrap()), "started");
}

#[tokio::test]
async fn the_primary_key_decides_even_without_the_lock() {
    let db = TestDb::new().await;
    // Every caller has its own lock: the lock protects nothing.
    db.execute(
        "create or replace function {}._lock_id(p_scope text, p_key text) returns bigint
           language sql volatile as 'select pg_backend_pid()::bigint'",
    )
    .await;
    let mut holder = db.pool.begin().await.unwrap();
    let claim = started(db.once.begin(&mut holder, &op("k")).await.unwrap());
    let second = tokio::spawn({
        let (once, pool) = (db.once.clone(), db.pool.clone());
        async move {
            let mut tx = pool.begin().await.unwrap();
            once.begin(&mut tx, &op("k")).await.unwrap()
        }
    });
    db.until_waiting(1).await;
    claim.complete(&mut holder, Response::empty()).await.unwrap();
    holder.commit().await.unwrap();
    assert_eq!(word(&second.await.unwrap()), "replay");
}

#[tokio::test]
async fn a_row_that_vanishes_between_two_looks_is_looked_for_again() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    db.complete(&op("k"), "old").await;
    db.advance(Duration::from_secs(86_400)).await;
    // A reaper has deleted the row, but not committed yet: begin sees the row, then the row is gone.
    let mut reaper = db.conn().await;
    let mut tx = reaper.begin().await.unwrap();
    let batch = db.sql("select deleted from {}._reap_batch(10, null)");
    assert_eq!(sqlx::query_scalar::<_, i64>(batch).fetch_one(&mut *tx).await.unwrap(), 1);
    let mut hasty = db.conn().await;
    let answer = db.once.begin(&mut hasty, &op("k")).await.unwrap();
    assert_eq!(word(&answer), "in progress", "without a wait nothing is waited for");
    let beginning = tokio::spawn({
        let (once, pool) = (db.once.clone(), db.pool.clone());
        let patient = op("k").policy(waits(LONG));
        async move { once.begin(&mut pool.acquire().await.unwrap(), &patient).await.unwrap() }
    });
    db.until_waiting(1).await;
    tx.commit().await.unwrap();
    let claim = started(beginning.await.unwrap());
    assert_eq!(claim.attempt(), 1);
    let rows: i64 = db.ask("select count(*) from {}.idempotency_keys").await;
    assert_eq!(rows, 1);
}

#[tokio::test]
async fn a_prepared_transaction_holds_its_key() {
    let db = TestDb::new().await;
    let mut conn = db.conn().await;
    sqlx::raw_sql("begin").execute(&mut conn).await.unwrap();
    let claim = started(db.once.begin(&mut conn, &op("k")).await.unwrap());
    claim.complete(&mut conn, Response::empty()).await.unwrap();
    sqlx::raw_sql(db.sql("prepare transaction '{}'")).execute(&mut conn).await.unwrap();
    let mut other = db.conn().await;
    let wait = op("k").policy(waits(Duration::from_millis(20)));
    assert_eq!(word(&db.once.begin(&mut other, &wait).await.unwrap()), "in progress");
    sqlx::raw_sql(db.sql("commit prepared '{}'")).execute(&mut conn).await.unwrap();
    assert_eq!(word(&db.once.begin(&mut other, &op("k")).await.unwrap()), "replay");
}

#[tokio::test]
async fn a_replay_locks_its_row_only_when_asked_to() {
    let db = TestDb::new().await;
    db.complete(&op("k"), "done").await;
    for (op, locks) in [(op("k"), false), (op("k").lock_replay(), true)] {
        let mut tx = db.pool.begin().await.unwrap();
        assert_eq!(word(&db.once.begin(&mut tx, &op).await.unwrap()), "replay");
        let locked: bool =
            sqlx::query_scalar("select pg_current_xact_id_if_assigned() is not null")
                .fetch_one(&mut *tx)
                .await
                .unwrap();
        assert_eq!(locked, locks, "only a locked row needs a transaction id");
    }
}

#[tokio::test]
async fn an_answer_after_a_wait_leaves_the_holder_alone() {
    let db = TestDb::new().await;
    let mut holder = db.pool.begin().await.unwrap();
    // A leased begin that has not committed yet.
    let begin = "select token from {}._begin('test/scope', 'k', null, 86400000, null, 60000, 0, 'retry', null, false)";
    let token: sqlx::types::Uuid =
        sqlx::query_scalar(db.sql(begin)).fetch_one(&mut *holder).await.unwrap();
    let waiter = tokio::spawn({
        let (once, pool) = (db.once.clone(), db.pool.clone());
        async move {
            let mut tx = pool.begin().await.unwrap();
            let answer = once.begin(&mut tx, &op("k").policy(waits(LONG))).await.unwrap();
            (word(&answer), tx) // the transaction stays open
        }
    });
    db.until_waiting(1).await;
    holder.commit().await.unwrap();
    let (answer, open) = waiter.await.unwrap();
    assert_eq!(answer, "in progress");
    // The holder's heartbeat and its end do not wait for that transaction.
    let mut conn = db.conn().await;
    sqlx::raw_sql("set lock_timeout = '5s'").execute(&mut conn).await.unwrap();
    for call in [
        "select a[1] = 'extended' from _extend_leases(array['test/scope'], array['k'], array[$1], array[60000]) a",
        "select complete('test/scope', 'k', $1) is not null",
    ] {
        let call =
            db.sql(&call.replace("_extend", "{}._extend").replace("complete(", "{}.complete("));
        sqlx::query(call).bind(token).execute(&mut conn).await.unwrap();
    }
    drop(open);
}

#[tokio::test]
async fn a_forgotten_key_goes_from_a_rolled_back_holder_to_one_waiter() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    db.complete(&op("k"), "old").await;
    db.advance(Duration::from_secs(86_400)).await;
    let mut holder = db.pool.begin().await.unwrap();
    let claim = started(db.once.begin(&mut holder, &op("k")).await.unwrap());
    let mut waiters = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (once, mut conn) = (db.once.clone(), db.conn().await);
        waiters.spawn(async move {
            let mut tx = conn.begin().await.unwrap();
            let answer = once.begin(&mut tx, &op("k").policy(waits(LONG))).await.unwrap();
            let answered = word(&answer);
            if let Begin::Started(claim) = answer {
                claim.complete(&mut tx, Response::empty()).await.unwrap();
            }
            tx.commit().await.unwrap();
            answered
        });
    }
    db.until_waiting(8).await;
    drop(claim);
    holder.rollback().await.unwrap();
    let mut answers: Vec<_> = waiters.join_all().await;
    answers.sort_unstable();
    assert_eq!(answers.iter().filter(|answer| **answer == "started").count(), 1, "{answers:?}");
    assert_eq!(answers.iter().filter(|answer| **answer == "replay").count(), 7, "{answers:?}");
}

#[tokio::test]
async fn completing_on_another_connection_is_refused_and_does_not_hang() {
    let db = TestDb::new().await;
    let mut tx = db.pool.begin().await.unwrap();
    let claim = started(db.once.begin(&mut tx, &op("k")).await.unwrap());
    let mut elsewhere = db.conn().await;
    let complete = claim.complete(&mut elsewhere, Response::empty());
    let error = tokio::time::timeout(LONG, complete).await.expect("no hanging").unwrap_err();
    assert_eq!(error.kind(), pgonce::ErrorKind::ClaimLost);
}

#[tokio::test]
async fn a_takeover_restores_the_callers_lock_timeout() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    let minute = Duration::from_secs(60);
    drop(db.lease(&op("k"), minute).await);
    db.advance(minute).await;
    let mut tx = db.pool.begin().await.unwrap();
    sqlx::raw_sql("set local lock_timeout = '77s'").execute(&mut *tx).await.unwrap();
    let answer = db.once.begin(&mut tx, &op("k").policy(waits(LONG))).await.unwrap();
    assert_eq!(word(&answer), "started");
    let timeout: String =
        sqlx::query_scalar("show lock_timeout").fetch_one(&mut *tx).await.unwrap();
    assert_eq!(timeout, "77s");
}

#[tokio::test]
async fn a_locking_replay_keeps_to_the_bound_too() {
    let db = TestDb::new().await;
    db.complete(&op("k"), "done").await;
    let mut other = db.pool.begin().await.unwrap();
    let lock = "select 1 from {}.idempotency_keys for update";
    sqlx::query(db.sql(lock)).execute(&mut *other).await.unwrap();
    let mut tx = db.pool.begin().await.unwrap();
    let op_locking = op("k").lock_replay();
    let locking = db.once.begin(&mut tx, &op_locking);
    let answer = tokio::time::timeout(LONG, locking).await.expect("no hanging").unwrap();
    assert_eq!(word(&answer), "in progress");
    other.rollback().await.unwrap();
    let answer = db.once.begin(&mut tx, &op("k").lock_replay()).await.unwrap();
    assert_eq!(word(&answer), "replay");
}

#[tokio::test]
async fn a_wait_gives_the_lock_of_a_finished_key_back_before_its_transaction_ends() {
    let db = TestDb::new().await;
    db.once.run(&db.pool, &op("done"), async |_| Ok::<_, pgonce::Failure>(7)).await.unwrap();
    let (mut waiter, mut other) = (db.pool.begin().await.unwrap(), db.conn().await);
    for (key, told, is_free) in [("done", None, true), ("new", Some(true), false)] {
        let wait = db.sql("select {}._wait_for_key('test/scope', $1, 0)");
        let wait = sqlx::query_scalar::<_, Option<bool>>(wait).bind(key);
        assert_eq!(wait.fetch_one(&mut *waiter).await.unwrap(), told, "{key}");
        let lock = db.sql("select pg_try_advisory_xact_lock({}._lock_id('test/scope', $1))");
        let lock = sqlx::query_scalar::<_, bool>(lock).bind(key);
        assert_eq!(lock.fetch_one(&mut other).await.unwrap(), is_free, "{key}");
    }
}
