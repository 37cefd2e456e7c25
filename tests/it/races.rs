//! Many callers at once: one effect, in any order.

use std::sync::Arc;
use std::time::Duration;

use pgonce::{Begin, Error, PgOnce, Response, RunError};
use sqlx::postgres::PgPoolOptions;
use sqlx::{PgConnection, PgPool, Postgres, Transaction};
use tokio::sync::{Barrier, mpsc};
use tokio::task::JoinSet;

use crate::crash::{Work, run};
use crate::support::db::{PATIENCE, TestDb, effect, op, started, waits, word};
use crate::support::worker::{Parent, Worker};

const LONG: Duration = Duration::from_secs(30);

/// A worker's part of the race: reports how each of its tasks ended. Half of the tasks wait in the database, the others
/// retry.
pub async fn race(db: &TestDb, parent: &Parent) {
    parent.say("ready");
    let tasks: u32 = parent.hear().await.parse().unwrap();
    let mut racing = JoinSet::new();
    for task in 0..tasks {
        let db = TestDb::open(&db.schema, db.options.clone(), 1).await;
        racing.spawn(async move {
            let op = op("race").policy(waits(if task % 2 == 0 { LONG } else { Duration::ZERO }));
            loop {
                let work = async |tx: &mut PgConnection| effect(tx, &db.schema, "race").await;
                match db.once.run(&db.pool, &op, work).await {
                    Err(RunError::InProgress(_)) if task % 2 == 1 => {}
                    result => return result.unwrap(),
                }
            }
        });
    }
    while let Some(done) = racing.join_next().await {
        let done = done.unwrap();
        let how = if done.is_replay() { "replayed" } else { "performed" };
        parent.say(format_args!("{how} {}", *done));
    }
}

#[tokio::test]
async fn fifty_tasks_in_four_processes_share_one_effect() {
    let db = TestDb::new().await;
    let mut workers: Vec<_> = (0..4).map(|_| Worker::spawn(&db, "race")).collect();
    for worker in &mut workers {
        assert_eq!(worker.hear().await, "ready");
    }
    let tasks = [13, 13, 12, 12];
    for (worker, tasks) in workers.iter_mut().zip(tasks) {
        worker.tell(&tasks.to_string()).await;
    }
    let mut said = Vec::new();
    for (worker, tasks) in workers.iter_mut().zip(tasks) {
        for _ in 0..tasks {
            said.push(worker.hear().await);
        }
    }
    assert_eq!(db.effects().await, 1);
    let id: i64 = db.ask("select id from {}.effect").await;
    said.sort();
    let mut expected = vec![format!("performed {id}")];
    expected.resize(50, format!("replayed {id}"));
    assert_eq!(said, expected);
    for worker in workers {
        assert!(worker.ended().await.success());
    }
}

type Tx = Transaction<'static, Postgres>;

/// Starts callers that begin the same key, each in a transaction that stays open.
async fn waiters(db: &TestDb, count: u32) -> mpsc::Receiver<(Tx, Begin)> {
    let (answers, answered) = mpsc::channel(count as usize);
    for _ in 0..count {
        let (once, pool, answers) = (db.once.clone(), db.pool.clone(), answers.clone());
        tokio::spawn(async move {
            let mut tx = pool.begin().await.unwrap();
            let begin = once.begin(&mut tx, &op("k").policy(waits(LONG))).await.unwrap();
            answers.send((tx, begin)).await.unwrap();
        });
    }
    db.until_waiting(count).await;
    answered
}

async fn next(answered: &mut mpsc::Receiver<(Tx, Begin)>) -> (Tx, Begin) {
    let answer = tokio::time::timeout(PATIENCE, answered.recv()).await;
    answer.expect("an answer in time").expect("every waiter answers")
}

#[tokio::test]
async fn when_the_holder_rolls_back_exactly_one_of_twenty_waiters_goes_next() {
    let db = TestDb::with_connections(21).await;
    let mut holder = db.pool.begin().await.unwrap();
    let claim = started(db.once.begin(&mut holder, &op("k")).await.unwrap());
    effect(&mut holder, &db.schema, "k").await.unwrap();
    let mut answered = waiters(&db, 20).await;
    holder.rollback().await.unwrap();
    drop(claim);

    let (mut tx, begin) = next(&mut answered).await;
    let claim = started(begin);
    effect(&mut tx, &db.schema, "k").await.unwrap();
    db.until_waiting(19).await;
    assert!(answered.try_recv().is_err(), "somebody else got in too");
    claim.complete(&mut tx, Response::bytes("done")).await.unwrap();
    tx.commit().await.unwrap();
    for _ in 0..19 {
        let (_tx, begin) = next(&mut answered).await;
        assert_eq!(word(&begin), "replay");
    }
    assert_eq!(db.effects().await, 1);
}

/// A waiter releases the lock before it answers; otherwise these would queue for each other.
#[tokio::test]
async fn replays_that_waited_together_answer_while_all_their_transactions_are_open() {
    const WAITERS: u32 = 10;
    let db = TestDb::with_connections(WAITERS + 1).await;
    let mut holder = db.pool.begin().await.unwrap();
    let claim = started(db.once.begin(&mut holder, &op("k")).await.unwrap());
    let mut answered = waiters(&db, WAITERS).await;
    claim.complete(&mut holder, Response::bytes("done")).await.unwrap();
    holder.commit().await.unwrap();

    let mut open = Vec::new();
    for _ in 0..WAITERS {
        let (tx, begin) = next(&mut answered).await;
        assert_eq!(word(&begin), "replay");
        open.push(tx);
    }
}

/// One transaction with two operations. It begins the second after the other caller has its first.
async fn both(
    once: &PgOnce,
    pool: &PgPool,
    keys: [&str; 2],
    met: Option<&Barrier>,
    schema: &str,
) -> Result<[&'static str; 2], Error> {
    let mut tx = pool.begin().await.unwrap();
    let mut words = [""; 2];
    for (key, said) in keys.into_iter().zip(&mut words) {
        let begin = once.begin(&mut tx, &op(key).policy(waits(LONG))).await?;
        *said = word(&begin);
        if let Begin::Started(claim) = begin {
            effect(&mut tx, schema, key).await.unwrap();
            claim.complete(&mut tx, Response::empty()).await?;
        }
        if let Some(met) = met.filter(|_| key == keys[0]) {
            met.wait().await;
        }
    }
    tx.commit().await.unwrap();
    Ok(words)
}

#[tokio::test]
async fn keys_taken_in_opposite_order_do_not_deadlock() {
    let db = TestDb::new().await;
    let pool = PgPoolOptions::new()
        .connect_lazy_with(db.options.clone().options([("deadlock_timeout", "20ms")]));
    let met = Barrier::new(2);
    let (there, back) = (["a", "b"], ["b", "a"]);
    let results = tokio::join!(
        both(&db.once, &pool, there, Some(&met), &db.schema),
        both(&db.once, &pool, back, Some(&met), &db.schema),
    );
    // Each has written when it begins the other's key, so it does not wait.
    for result in [results.0, results.1] {
        let [first, second] = result.unwrap();
        assert_eq!(first, "started");
        assert!(matches!(second, "in progress" | "replay"), "{second}");
    }
    let words = both(&db.once, &pool, there, None, &db.schema).await.unwrap();
    assert_eq!(words, ["replay", "replay"]);
    assert_eq!(db.effects().await, 2);
}

/// Prints the seed. `PGONCE_TEST_SEED` repeats a failure.
fn random() -> fastrand::Rng {
    let seed = std::env::var("PGONCE_TEST_SEED").ok().map(|seed| seed.parse().expect("a number"));
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("PGONCE_TEST_SEED={seed}");
    fastrand::Rng::with_seed(seed)
}

/// Every task performs all keys in its own order; a third of the attempts fail half way.
#[tokio::test(flavor = "multi_thread")]
async fn sixteen_tasks_on_eight_keys_in_random_order_double_nothing() {
    let db = Arc::new(TestDb::with_connections(16).await);
    let mut random = random();
    let mut tasks = JoinSet::new();
    for _ in 0..16 {
        let (db, mut random) = (Arc::clone(&db), random.fork());
        tasks.spawn(async move {
            let mut keys = ["1", "2", "3", "4", "5", "6", "7", "8"];
            random.shuffle(&mut keys);
            for key in keys {
                let mut ends = || if random.u8(..3) == 0 { Work::Fails } else { Work::Succeeds };
                while let Err(error) = run(&db, &db.pool, key, ends()).await {
                    assert!(matches!(error, RunError::Work { .. }), "{error:?}");
                }
            }
        });
    }
    while let Some(task) = tasks.join_next().await {
        task.unwrap();
    }
    assert_eq!(db.effects().await, 8);
    assert_eq!(db.ask::<i64>("select count(distinct key) from {}.effect").await, 8);
}
