//! Calls with the same key in one process: they wait for each other outside the database.

use std::error::Error;
use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::{Duration, Instant};

use pgonce::{Fingerprint, Operation, PgOnce, RunError, SchemaName};
use sqlx::postgres::PgPoolOptions;
use sqlx::{PgConnection, PgPool};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};

use crate::support::db::{PATIENCE, TestDb, effect, op, waits};
use crate::support::proxy::Proxy;

const LONG: Duration = Duration::from_secs(30);
const BEGIN: &str = "begin deferrable";

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Answer = Result<String, RunError<BoxError>>;

/// A call that leaves an effect. Its work signals that it has begun, then succeeds or fails as told.
struct Call {
    answer: JoinHandle<Answer>,
    begun: oneshot::Receiver<()>,
    end: oneshot::Sender<bool>,
}

fn call(once: &PgOnce, pool: &PgPool, db: &TestDb, op: Operation) -> Call {
    let ((has_begun, begun), (end, ends)) = (oneshot::channel(), oneshot::channel());
    let (once, pool, schema) = (once.clone(), pool.clone(), db.schema.clone());
    let gate = Arc::new(Mutex::new(Some((has_begun, ends))));
    let work = async move |tx: &mut PgConnection| {
        effect(tx, &schema, "k").await.map_err(Box::new)?;
        let (has_begun, ends) = gate.lock().unwrap().take().expect("one attempt");
        let _ = has_begun.send(());
        match ends.await {
            Ok(true) => Ok("ours".to_owned()),
            _ => Err(Box::<dyn Error + Send + Sync>::from("failed")),
        }
    };
    let answer =
        tokio::spawn(async move { once.run(&pool, &op, work).await.map(pgonce::Done::into_inner) });
    Call { answer, begun, end }
}

async fn at_work(once: &PgOnce, pool: &PgPool, db: &TestDb, op: Operation) -> Call {
    let mut call = call(once, pool, db, op);
    (&mut call.begun).await.unwrap();
    call
}

fn patient() -> Operation {
    op("k").policy(waits(LONG))
}

/// Calls whose work would succeed, each as far as it can get.
async fn crowd(
    once: &PgOnce,
    pool: &PgPool,
    db: &TestDb,
    op: impl Fn() -> Operation,
    count: usize,
) -> Vec<JoinHandle<Answer>> {
    let calls = (0..count).map(|_| {
        let call = call(once, pool, db, op());
        call.end.send(true).unwrap();
        call.answer
    });
    let calls = calls.collect();
    tokio::task::yield_now().await; // one thread: runs after all of them
    calls
}

async fn assert_ours(answers: Vec<JoinHandle<Answer>>, context: &str) {
    for answer in answers {
        assert_eq!(answer.await.unwrap().unwrap(), "ours", "{context}");
    }
}

#[tokio::test]
async fn a_crowd_on_one_key_leaves_the_pool_to_others() {
    let db = TestDb::new().await;
    let once = db.once.clone();
    // One connection works, the other serves all other calls.
    let proxy = Proxy::start(&db, None);
    let pool = PgPoolOptions::new()
        .max_connections(2)
        .acquire_timeout(Duration::from_secs(5))
        .connect_lazy_with(proxy.options());
    let first = at_work(&once, &pool, &db, patient()).await;
    let crowd = crowd(&once, &pool, &db, patient, 15).await;
    let other = once.run(&pool, &op("other"), async |_| Ok::<_, sqlx::Error>(1)).await;
    assert_eq!(other.unwrap().into_inner(), 1);
    first.end.send(true).unwrap();
    assert_ours(vec![first.answer], "the first").await;
    assert_ours(crowd, "the crowd").await;
    assert_eq!(db.effects().await, 1);
    // The work ran twice, for two keys: the crowd has only looked.
    let inserted = proxy.requests().iter().filter(|sent| *sent == "COMMIT").count();
    assert_eq!(inserted, 2);
}

#[tokio::test]
async fn when_the_one_at_work_leaves_no_answer_one_of_the_crowd_goes_on() {
    for drops in [false, true] {
        let db = TestDb::new().await;
        let once = db.once.clone();
        let first = at_work(&once, &db.pool, &db, patient()).await;
        let crowd = crowd(&once, &db.pool, &db, patient, 6).await;
        match drops {
            true => first.answer.abort(),
            false => first.end.send(false).unwrap(),
        }
        let context = format!("dropped: {drops}");
        assert_ours(crowd, &context).await;
        assert_eq!(db.effects().await, 1, "{context}");
    }
}

// Of the calls that wait for another process, or for a call of the crowd that took over, one needs a connection.
#[tokio::test]
async fn a_crowd_leaves_the_pool_to_others_whoever_it_waits_for() {
    for is_ours in [false, true] {
        let db = TestDb::new().await;
        let once = db.once.clone();
        let apart = PgOnce::new().schema(SchemaName::new(db.schema.as_str()).unwrap());
        let pool = PgPoolOptions::new()
            .max_connections(4)
            .acquire_timeout(Duration::from_secs(5))
            .connect_lazy_with(db.options.clone());
        let owner = if is_ours { &once } else { &apart };
        let first = at_work(owner, &pool, &db, patient()).await;
        let mut crowd: Vec<_> = (0..15).map(|_| call(&once, &pool, &db, patient())).collect();
        tokio::task::yield_now().await;
        let context = format!("ours: {is_ours}");
        if !is_ours {
            db.until_waiting(1).await;
            others_find_a_connection(&once, &pool, &context).await;
        }
        first.end.send(false).unwrap();
        assert!(matches!(first.answer.await.unwrap(), Err(RunError::Work { .. })), "{context}");
        let mut begun = JoinSet::new();
        for (number, call) in crowd.iter_mut().enumerate() {
            let has_begun = std::mem::replace(&mut call.begun, oneshot::channel().1);
            begun.spawn(async move { has_begun.await.map(|()| number) });
        }
        let goes_on = begun.join_next().await.unwrap().unwrap().expect(&context);
        others_find_a_connection(&once, &pool, &context).await;
        assert!(db.ask::<i64>(WAITING).await <= 1, "{context}");
        crowd.swap_remove(goes_on).end.send(true).unwrap();
        for call in crowd {
            assert_eq!(call.answer.await.unwrap().unwrap(), "ours", "{context}");
        }
        assert_eq!(db.effects().await, 1, "{context}");
    }
}

const WAITING: &str = "select count(*) from pg_stat_activity
    where application_name = '{}' and wait_event_type = 'Lock'";

/// Often enough to notice a waiting call that keeps a connection.
async fn others_find_a_connection(once: &PgOnce, pool: &PgPool, context: &str) {
    for number in 0..20 {
        let op = op(&format!("{context} {number}"));
        let other = once.run(pool, &op, async |_| Ok::<_, sqlx::Error>(1)).await;
        assert_eq!(other.expect(context).into_inner(), 1);
    }
}

// The second call soon looks for itself: the first may never be polled again.
#[tokio::test]
async fn an_answer_that_is_there_is_had_beside_a_call_that_hangs() {
    let db = TestDb::new().await;
    let once = db.once.clone();
    let op = op("k").policy(waits(Duration::from_secs(3600)));
    let run = || once.run(&db.pool, &op, async |_| Ok::<_, sqlx::Error>(1));
    run().await.unwrap();
    let mut hangs = Box::pin(run());
    let polled = poll_fn(|context| Poll::Ready(hangs.as_mut().poll(context).is_pending()));
    assert!(polled.await);
    let replayed = tokio::time::timeout(PATIENCE, run()).await.expect("soon").unwrap();
    assert!(replayed.is_replay());
}

// The leader looks again when the first call is done, and the others take its replay.
#[tokio::test]
async fn one_of_a_crowd_looks_for_all() {
    let db = TestDb::new().await;
    let proxy = Proxy::start(&db, None);
    // One connection works, one waits, and two serve all other calls.
    let pool = PgPoolOptions::new().max_connections(4).connect_lazy_with(proxy.options());
    let begun = || proxy.requests().iter().filter(|sent| *sent == BEGIN).count();
    let mut fewest = usize::MAX;
    // On a busy machine, some calls look on their own at that moment.
    for round in 0..20 {
        let key = format!("k{round}");
        let op = || op(&key).policy(waits(LONG));
        let first = at_work(&db.once, &pool, &db, op()).await;
        let crowd = crowd(&db.once, &pool, &db, op, 15).await;
        db.until_waiting(1).await;
        // A call without a connection has not looked yet.
        others_find_a_connection(&db.once, &pool, &format!("other {round}")).await;
        let before = begun();
        first.end.send(true).unwrap();
        assert_ours(vec![first.answer], "the first").await;
        assert_ours(crowd, "the crowd").await;
        fewest = fewest.min(begun() - before);
        if fewest <= 2 {
            return;
        }
    }
    panic!("at least {fewest} of 15 looked again");
}

// The call must lock its replay's row, so that its COMMIT waits for a synchronous standby.
#[tokio::test]
async fn a_call_that_locks_its_replay_looks_for_itself() {
    let db = TestDb::new().await;
    let proxy = Proxy::start(&db, None);
    let pool = PgPoolOptions::new().max_connections(4).connect_lazy_with(proxy.options());
    let first = at_work(&db.once, &pool, &db, patient()).await;
    let mut calls = crowd(&db.once, &pool, &db, patient, 1).await;
    db.until_waiting(1).await;
    let locks = call(&db.once, &pool, &db, patient().lock_replay());
    calls.push(locks.answer);
    others_find_a_connection(&db.once, &pool, "they have all looked").await;
    let committed = || proxy.requests().iter().filter(|sent| *sent == "COMMIT").count();
    let before = committed();
    first.end.send(true).unwrap();
    assert_ours(vec![first.answer], "the first").await;
    assert_ours(calls, "the others").await;
    assert_eq!(committed() - before, 2, "the work, and the replay whose row was locked");
}

#[tokio::test]
async fn a_call_waits_no_longer_than_it_was_told() {
    let db = TestDb::new().await;
    let once = db.once.clone();
    let first = at_work(&once, &db.pool, &db, patient()).await;
    let (wait, began) = (Duration::from_secs(2), Instant::now());
    let late = call(&once, &db.pool, &db, op("k").policy(waits(wait))).answer.await.unwrap();
    assert!(matches!(late, Err(RunError::InProgress(_))), "{late:?}");
    let took = began.elapsed();
    assert!(took >= wait && took < wait * 2, "{took:?}");
    first.end.send(true).unwrap();
    assert_ours(vec![first.answer], "the first").await;
}

#[tokio::test]
async fn another_request_is_told_so_after_the_wait() {
    let db = TestDb::new().await;
    let once = db.once.clone();
    let request = |text| op("k").fingerprint(Fingerprint::of_bytes(text)).policy(waits(LONG));
    let first = at_work(&once, &db.pool, &db, request("one")).await;
    let same = crowd(&once, &db.pool, &db, || request("one"), 1).await;
    db.until_waiting(1).await;
    let second = call(&once, &db.pool, &db, request("two"));
    others_find_a_connection(&once, &db.pool, "it has looked").await;
    first.end.send(true).unwrap();
    assert_ours(vec![first.answer], "the first").await;
    assert_ours(same, "the same request").await;
    let refused = second.answer.await.unwrap();
    assert!(matches!(refused, Err(RunError::Mismatch(_))), "{refused:?}");
}

// Another pool may lead to another database, where the key is free.
#[tokio::test]
async fn a_call_on_another_pool_waits_in_its_database() {
    let db = TestDb::new().await;
    let first = at_work(&db.once, &db.pool, &db, patient()).await;
    let pool = PgPoolOptions::new().connect_lazy_with(db.options.clone());
    let second = crowd(&db.once, &pool, &db, patient, 1).await;
    db.until_waiting(1).await;
    first.end.send(true).unwrap();
    assert_ours(vec![first.answer], "the first").await;
    assert_ours(second, "the second").await;
}
