//! Futures dropped at every await, pools with one connection, and calls from other threads.

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use pgonce::{ClaimState, Filter, PgOnce, Reaper, Response, RunError, SchemaName};
use sqlx::{ConnectOptions, Connection, PgConnection, PgPool};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::crash::{Work, effects_of, gone, nothing_is_stuck, pid_of, pool_of_one, run};
use crate::support::db::{TestDb, effect, lasting, op, started, waits, word};
use crate::support::proxy::Proxy;

const LONG: Duration = Duration::from_secs(20);
const LEASE: Duration = Duration::from_secs(30);

/// When to drop a future: at its `awaits`-th wait.
#[derive(Debug, Clone, Copy)]
struct Moment {
    awaits: usize,
    /// Drop it when the response has arrived unseen; otherwise at once, right after the request.
    answered: bool,
}

/// Drops a call at its first await, then at its second, and so on. `call` returns whether it finished, and its result.
/// Returns all results.
async fn dropped_everywhere(
    call: impl AsyncFn(Moment) -> (bool, &'static str),
) -> BTreeSet<&'static str> {
    let mut ends = BTreeSet::new();
    for answered in [false, true] {
        for awaits in 1.. {
            let (through, end) = call(Moment { awaits, answered }).await;
            ends.insert(end);
            if through {
                break;
            }
        }
    }
    ends
}

/// The future's output, or `None` if it was dropped first.
///
/// The connection goes through a proxy on the same thread. No response can arrive before the future waits for it, so
/// every request has an await, however fast the server is.
async fn drop_at<F: Future>(moment: Moment, proxy: &Proxy, future: F) -> Option<F::Output> {
    let Moment { awaits, answered } = moment;
    let mut left = awaits;
    let mut future = pin!(future);
    let asked = proxy.requests().len();
    let output = poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if left == 0 && !answered => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await;
    let asked = proxy.requests().len() - asked;
    // Only a queued ROLLBACK and the ping behind it share an await.
    assert!(output.is_none() || awaits >= asked, "{awaits} awaits for {asked} requests");
    output
}

/// The pool's next borrower writes outside any transaction, visible to everyone at once.
async fn next_borrower_is_heard(db: &TestDb, pool: &PgPool, key: &str) {
    let mut borrowed = pool.acquire().await.expect("the connection comes back");
    effect(&mut borrowed, &db.schema, key).await.unwrap();
    assert_eq!(effects_of(db, key).await, 1, "a lost write: {key}");
}

/// On a new connection, and on a used one with prepared statements.
async fn runs_dropped_everywhere(work: Work, done_before: bool) {
    let db = TestDb::new().await;
    db.execute("alter table {}.effect add unique (key) deferrable initially deferred").await;
    let proxy = Proxy::start(&db, None);
    for warm in [false, true] {
        dropped_everywhere(async |moment| {
            let key = format!("{warm} {moment:?}");
            let pool = pool_of_one(proxy.options());
            if warm {
                run(&db, &pool, &format!("warm up {key}"), Work::Succeeds).await.unwrap();
            }
            if done_before {
                run(&db, &db.pool, &key, Work::Succeeds).await.unwrap();
            }
            let output = drop_at(moment, &proxy, run(&db, &pool, &key, work)).await;
            next_borrower_is_heard(&db, &pool, &format!("after {key}")).await;
            nothing_is_stuck(&db).await;
            let again = run(&db, &pool, &key, Work::Succeeds).await;
            let kept = work == Work::FailsForGood && matches!(again, Err(RunError::Failed { .. }));
            assert!(kept || again.is_ok(), "{key}: {again:?}");
            assert_eq!(effects_of(&db, &key).await, i64::from(!kept), "{key}");
            (output.is_some(), "settled")
        })
        .await;
    }
}

#[tokio::test]
async fn a_run_dropped_at_any_await_leaves_no_transaction_open() {
    runs_dropped_everywhere(Work::Succeeds, false).await;
}

#[tokio::test]
async fn a_failing_run_dropped_at_any_await_leaves_no_transaction_open() {
    runs_dropped_everywhere(Work::Fails, false).await;
    runs_dropped_everywhere(Work::FailsForGood, false).await;
    runs_dropped_everywhere(Work::WritesTwice, false).await;
}

#[tokio::test]
async fn a_replaying_run_dropped_at_any_await_leaves_no_transaction_open() {
    runs_dropped_everywhere(Work::Succeeds, true).await;
}

/// The whole operation by the verbs, up to COMMIT.
async fn verbs(db: &TestDb, tx: &mut PgConnection, key: &str) {
    let claim = started(db.once.begin(tx, &op(key).policy(waits(LONG))).await.unwrap());
    effect(tx, &db.schema, key).await.unwrap();
    claim.complete(tx, Response::bytes("done")).await.unwrap();
}

#[tokio::test]
async fn verbs_dropped_at_any_await_roll_back_with_their_transaction() {
    let db = TestDb::new().await;
    let proxy = Proxy::start(&db, None);
    dropped_everywhere(async |moment| {
        let key = format!("{moment:?}");
        let mut conn = proxy.options().connect().await.unwrap();
        let mut tx = conn.begin().await.unwrap();
        let output = drop_at(moment, &proxy, verbs(&db, &mut tx, &key)).await;
        tx.rollback().await.unwrap();
        assert_eq!(effects_of(&db, &key).await, 0, "{key}");
        let op = op(&key);
        let row = db.once.inspect(&mut conn, op.scope(), op.key()).await.unwrap();
        assert!(row.is_none(), "{key}");
        let mut tx = conn.begin().await.unwrap();
        verbs(&db, &mut tx, &key).await;
        pgonce::commit(tx).await.unwrap();
        assert_eq!(effects_of(&db, &key).await, 1, "{key}");
        (output.is_some(), "rolled back")
    })
    .await;
}

#[tokio::test]
async fn a_leased_begin_dropped_at_any_await_has_the_key_or_has_not() {
    let db = TestDb::new().await;
    let proxy = Proxy::start(&db, None);
    let ends = dropped_everywhere(async |moment| {
        let op = op(&format!("{moment:?}"));
        let pool = pool_of_one(proxy.options());
        let pid = pid_of(&mut pool.acquire().await.unwrap()).await;
        let output =
            drop_at(moment, &proxy, db.once.begin_leased(&pool, &op, lasting(LEASE))).await;
        let mut conn = pool.acquire().await.unwrap();
        // Statements that were sent are finished: on the same connection, or on one that was closed.
        if pid_of(&mut conn).await != pid {
            gone(&db, pid).await;
        }
        let row = db.once.inspect(&mut conn, op.scope(), op.key()).await.unwrap();
        let claim = row.map(|row| (row.record.claim, row.record.attempt));
        let begin = db.once.begin_leased(&db.pool, &op, lasting(LEASE)).await.unwrap();
        match word(&begin) {
            "started" => assert_eq!(claim, None, "{moment:?}"),
            _ => assert_eq!(claim, Some((Some(ClaimState::Live), 1)), "{moment:?}"),
        }
        (output.is_some(), word(&begin))
    })
    .await;
    assert_eq!(ends, ["in progress", "started"].into());
}

#[tokio::test]
async fn a_complete_dropped_at_any_await_is_stored_or_is_not() {
    let db = TestDb::new().await;
    let proxy = Proxy::start(&db, None);
    let ends = dropped_everywhere(async |moment| {
        let op = op(&format!("{moment:?}"));
        let claim = db.lease(&op, LEASE).await;
        let mut conn = proxy.options().connect().await.unwrap();
        let complete = claim.complete(&mut conn, Response::bytes("done"));
        let output = drop_at(moment, &proxy, complete).await;
        conn.ping().await.unwrap();
        let begin = db.once.begin_leased(&db.pool, &op, lasting(LEASE)).await.unwrap();
        (output.is_some(), word(&begin))
    })
    .await;
    assert_eq!(ends, ["in progress", "replay"].into());
}

/// The connection survives, or is closed in the middle.
#[tokio::test]
async fn a_migrate_dropped_at_any_await_is_applied_whole_or_not_at_all() {
    let db = TestDb::new().await;
    let proxy = Proxy::start(&db, None);
    for close in [false, true] {
        let ends = dropped_everywhere(async |moment| {
            let Moment { awaits, answered } = moment;
            let schema = format!("{}_{close}_{answered}_{awaits}", db.schema);
            let once = PgOnce::new().schema(SchemaName::new(&schema).unwrap());
            let mut conn = proxy.options().connect().await.unwrap();
            let pid = pid_of(&mut conn).await;
            let output = drop_at(moment, &proxy, once.migrate(&mut conn)).await;
            if close {
                drop(conn);
                gone(&db, pid).await;
            } else {
                conn.ping().await.unwrap();
            }
            let mut conn = db.conn().await;
            let end = match once.check(&db.pool).await {
                Ok(()) => "whole",
                Err(_) => {
                    let none = format!("select to_regnamespace('{schema}') is null");
                    assert!(db.ask::<bool>(&none).await, "half a schema: {schema}");
                    "not at all"
                }
            };
            once.migrate(&mut conn).await.unwrap();
            once.check(&db.pool).await.unwrap();
            drop(started(once.begin_leased(&db.pool, &op("k"), lasting(LEASE)).await.unwrap()));
            (output.is_some(), end)
        })
        .await;
        assert_eq!(ends, ["not at all", "whole"].into());
    }
}

const OVERDUE: &str = "select count(*) from {}.idempotency_keys where expires_at <= now()";

#[tokio::test]
async fn a_reaper_dropped_at_any_await_leaves_whole_batches_for_the_next() {
    let db = TestDb::new().await;
    let proxy = Proxy::start(&db, None);
    let reaper = Reaper::new(&db.once);
    db.complete(&op("young"), "done").await;
    let ends = dropped_everywhere(async |moment| {
        db.plant_overdue(2500, 0).await;
        let mut conn = proxy.options().connect().await.unwrap();
        let output = drop_at(moment, &proxy, reaper.pass(&mut conn)).await;
        conn.ping().await.unwrap();
        let left: i64 = db.ask(OVERDUE).await;
        assert!(left == 2500 || left <= 1500, "half of the first batch: {left} left");
        let reaped = reaper.pass(&mut conn).await.unwrap();
        assert_eq!((reaped.deleted, reaped.backlog), (left.unsigned_abs(), 0), "{moment:?}");
        assert_eq!(db.ask::<i64>(OVERDUE).await, 0);
        (output.is_some(), if left == 0 { "all" } else { "some" })
    })
    .await;
    assert_eq!(ends, ["all", "some"].into());
    assert_eq!(db.ask::<i64>("select count(*) from {}.idempotency_keys").await, 1);
}

#[tokio::test]
async fn every_call_works_on_a_pool_of_one_connection() {
    let db = TestDb::new().await;
    let (once, pool) = (&db.once, pool_of_one(db.options.clone()));
    let mut tx = pool.begin().await.unwrap();
    verbs(&db, &mut tx, "verbs").await;
    pgonce::commit(tx).await.unwrap();
    for (work, key) in
        [(Work::Succeeds, "run"), (Work::Fails, "fail"), (Work::FailsForGood, "keep")]
    {
        for _retry in 0..2 {
            assert_eq!(run(&db, &pool, key, work).await.is_ok(), work == Work::Succeeds);
        }
    }
    let op = op("leased");
    let mut claim = started(once.begin_leased(&pool, &op, lasting(LEASE)).await.unwrap());
    claim.extend(&pool, lasting(LEASE)).await.unwrap();
    claim.release_leased(&pool).await.unwrap();
    let claim = started(once.begin_leased(&pool, &op, lasting(LEASE)).await.unwrap());
    let seen = db.seen(&op).await;
    drop(claim);
    once.check(&pool).await.unwrap();
    let conn = &mut *pool.acquire().await.unwrap();
    once.migrate(conn).await.unwrap();
    once.revoke_claim(conn, op.scope(), op.key(), &seen).await.unwrap();
    assert!(once.inspect(conn, op.scope(), op.key()).await.unwrap().is_some());
    assert_eq!(once.list(conn, &Filter::default(), 10).await.unwrap().len(), 4);
    assert_eq!(once.stats(conn).await.unwrap().failed, 1);
    db.plant_overdue(2, 0).await;
    assert_eq!(once.reap_once(conn, 1).await.unwrap().deleted, 1);
    assert_eq!(Reaper::new(once).pass(conn).await.unwrap().deleted, 1);
}

fn reap_in_background(db: &TestDb, pool: PgPool) -> (oneshot::Sender<()>, JoinHandle<u64>) {
    let (stop, stopped) = oneshot::channel();
    let reaper = Reaper::new(&db.once).interval(Duration::from_millis(1)).unwrap();
    (stop, tokio::spawn(async move { reaper.run_until(pool, stopped).await }))
}

#[tokio::test]
async fn a_background_reaper_shares_a_pool_of_one_connection() {
    let db = TestDb::new().await;
    db.plant_overdue(2500, 0).await;
    let pool = pool_of_one(db.options.clone());
    let (stop, reaping) = reap_in_background(&db, pool.clone());
    for n in 0..5 {
        run(&db, &pool, &n.to_string(), Work::Succeeds).await.unwrap();
    }
    db.until(&format!("select ({OVERDUE}) = 0")).await;
    stop.send(()).unwrap();
    assert_eq!(reaping.await.unwrap(), 2500);
}

#[tokio::test]
async fn a_background_reaper_told_to_stop_finishes_its_batch() {
    let db = TestDb::new().await;
    db.plant_overdue(2500, 0).await;
    let mut blocker = db.pool.begin().await.unwrap();
    let lock = db.sql("lock table {}.idempotency_keys in share mode");
    sqlx::raw_sql(lock).execute(&mut *blocker).await.unwrap();
    let (stop, reaping) = reap_in_background(&db, db.pool.clone());
    db.until_waiting(1).await;
    stop.send(()).unwrap();
    blocker.rollback().await.unwrap();
    let deleted = reaping.await.unwrap();
    assert!(deleted > 0);
    assert_eq!(db.ask::<i64>(OVERDUE).await.unsigned_abs(), 2500 - deleted);
}

/// Half of this test is compilation: a future that is not `Send` cannot be spawned.
#[tokio::test(flavor = "multi_thread")]
async fn every_future_can_be_spawned() {
    let db = TestDb::new().await;
    let (once, pool, schema) = (db.once.clone(), db.pool.clone(), db.schema.clone());
    let id = tokio::spawn(async move {
        let (op, key, table) = (op("run"), "run".to_owned(), &schema);
        let done = once.run(&pool, &op, async |tx| effect(tx, table, &key).await).await;
        *done.unwrap()
    });
    assert_eq!(id.await.unwrap(), db.ask::<i64>("select id from {}.effect").await);

    let (once, pool) = (db.once.clone(), db.pool.clone());
    let verbs = tokio::spawn(async move {
        let mut tx = pool.begin().await.unwrap();
        let claim = started(once.begin(&mut tx, &op("verbs")).await.unwrap());
        claim.complete(&mut tx, Response::empty()).await.unwrap();
        pgonce::commit(tx).await.unwrap();

        let op = op("leased");
        let mut claim = started(once.begin_leased(&pool, &op, lasting(LEASE)).await.unwrap());
        claim.extend(&pool, lasting(LEASE)).await.unwrap();
        claim.release_leased(&pool).await.unwrap();
        let claim = started(once.begin_leased(&pool, &op, lasting(LEASE)).await.unwrap());
        let conn = &mut *pool.acquire().await.unwrap();
        let seen = once.inspect(conn, op.scope(), op.key()).await.unwrap().unwrap().record;
        drop(claim);
        once.revoke_claim(conn, op.scope(), op.key(), &seen).await.unwrap();
        let claim = started(once.begin_leased(&pool, &op, lasting(LEASE)).await.unwrap());
        claim.fail_leased(&pool, Response::empty()).await
    });
    verbs.await.unwrap().unwrap();

    let (once, pool) = (db.once.clone(), db.pool.clone());
    let others = tokio::spawn(async move {
        let op = op("run");
        let conn = &mut *pool.acquire().await.unwrap();
        once.migrate(conn).await.unwrap();
        once.check(&pool).await.unwrap();
        once.inspect(conn, op.scope(), op.key()).await.unwrap();
        once.stats(conn).await.unwrap();
        once.reap_once(conn, 1).await.unwrap();
        Reaper::new(&once).pass(conn).await.unwrap();
        Reaper::new(&once).run_until(pool.clone(), std::future::ready(())).await;
        once.list(conn, &Filter::default(), 10).await
    });
    assert_eq!(others.await.unwrap().unwrap().len(), 3);
}
