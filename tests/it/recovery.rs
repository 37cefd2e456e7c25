//! Abandoned work runs again without its client.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pgonce::{Failure, Filter, Key, Lease, Listed, Operation, PgOnce, Recovery};
use pgonce::{RunError, Scope, Work};
use sqlx::PgPool;
use tokio::sync::{Notify, Semaphore, oneshot};

use crate::abandoned::{abandon, abandoned};
use crate::support::db::{PATIENCE, TestDb, op};
use crate::support::worker::{Parent, Worker};

const MINUTE: Duration = Duration::from_secs(60);

fn lease() -> Lease {
    Lease::new(MINUTE).unwrap()
}

/// A recovery of all test scopes, with a short interval.
fn recovery(db: &TestDb) -> Recovery {
    Recovery::new(&db.once, "test/%").unwrap().interval(Duration::from_millis(10)).unwrap()
}

/// How often a recovery called its handler, per key.
#[derive(Clone, Default)]
struct Calls(Arc<Mutex<HashMap<String, u32>>>);

impl Calls {
    fn count(&self, key: &str) -> u32 {
        let mut calls = self.0.lock().unwrap();
        let calls = calls.entry(key.to_owned()).or_default();
        *calls += 1;
        *calls
    }

    fn of(&self, key: &str) -> u32 {
        self.0.lock().unwrap().get(key).copied().unwrap_or_default()
    }
}

/// Finishes the found operation with its key as the value.
async fn finish(once: PgOnce, pool: PgPool, found: Listed) -> Result<String, RunError<Failure>> {
    let op = Operation::new(found.scope, found.key.as_str())?;
    let key = found.key;
    let done = once.run_leased(&pool, &op, lease(), async |work: &mut Work| {
        work.step("only", async || Ok::<_, Failure>(key)).await
    });
    Ok(done.await?.into_inner())
}

/// Runs a recovery until the query `until` is true. Returns the recovery's result.
async fn run<F, Fut, E>(db: &TestDb, recovery: Recovery, handler: F, until: &str) -> u64
where
    F: Fn(Listed) -> Fut + Send + 'static,
    Fut: Future<Output = Result<String, E>> + Send + 'static,
    E: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
{
    let (stop, stopped) = oneshot::channel::<()>();
    let pool = db.pool.clone();
    let task = tokio::spawn(async move { recovery.run_until(pool, handler, stopped).await });
    db.until(until).await;
    drop(stop);
    tokio::time::timeout(PATIENCE, task).await.expect("it stops").unwrap()
}

#[tokio::test]
async fn abandoned_work_is_run_again_without_its_client() {
    let db = TestDb::new().await;
    abandon(&db, (0..20).map(|n| format!("k{n}"))).await;
    let (once, pool) = (db.once.clone(), db.pool.clone());
    let handler = move |found| finish(once.clone(), pool.clone(), found);
    let all = "select count(*) = 20 from {}.keys where status = 'completed' and attempt = 2";
    assert_eq!(run(&db, recovery(&db), handler, all).await, 20);
    assert_eq!(db.ask::<i64>("select count(*) from {}.unfinished").await, 0);
    let found = db.once.list(&mut db.conn().await, &Filter::default(), 1).await.unwrap().remove(0);
    let retry = finish(db.once.clone(), db.pool.clone(), found);
    assert_eq!(retry.await.unwrap(), "k0", "the client that asks again gets the value");
}

#[tokio::test]
async fn many_recoveries_share_the_work() {
    let db = TestDb::with_connections(40).await;
    abandon(&db, (0..60).map(|n| format!("k{n}"))).await;
    let calls = Calls::default();
    let one = async || {
        let (once, pool, calls) = (db.once.clone(), db.pool.clone(), calls.clone());
        let handler = move |found: Listed| {
            calls.count(&found.key);
            finish(once.clone(), pool.clone(), found)
        };
        let all = "select count(*) = 60 from {}.keys where status = 'completed'";
        run(&db, recovery(&db).pauses(MINUTE, MINUTE).unwrap(), handler, all).await
    };
    let (a, b, c, d) = tokio::join!(one(), one(), one(), one());
    assert_eq!(a + b + c + d, 60);
    assert!(a.max(b).max(c).max(d) < 60, "one did it all");
    assert!((0..60).all(|n| calls.of(&format!("k{n}")) == 1), "each was picked once");
}

#[tokio::test]
async fn what_always_fails_leaves_room_for_the_rest() {
    let db = TestDb::new().await;
    // The worst keys come first, more than may run at once: an error, panics, and work that never ends.
    let bad = ["error", "panic", "panic outright", "hang"]
        .into_iter()
        .flat_map(|bad| (0..4).map(move |n| format!("{bad}{n}")));
    abandon(&db, bad.chain((0..8).map(|n| format!("good{n}")))).await;
    let calls = Calls::default();
    let (once, pool, counted) = (db.once.clone(), db.pool.clone(), calls.clone());
    let places = Arc::new(Semaphore::new(2));
    let handler = move |found: Listed| {
        let call = counted.count(&found.key);
        assert!(!found.key.starts_with("panic outright"), "call {call}");
        let (once, pool) = (once.clone(), pool.clone());
        let place = places.clone().try_acquire_owned().expect("no more at once than asked for");
        async move {
            let _place = place;
            match found.key.trim_end_matches(|c: char| c.is_ascii_digit()) {
                "error" => Err("no".into()),
                "panic" => panic!("call {call}"),
                "hang" => std::future::pending().await,
                _ => finish(once, pool, found).await.map_err(Box::from),
            }
        }
    };
    let recovery = recovery(&db)
        .concurrency(2)
        .unwrap()
        .pauses(Duration::from_millis(1), Duration::from_millis(1))
        .unwrap()
        .time_limit(Duration::from_millis(500))
        .unwrap();
    let good = "select count(*) = 8 from {}.keys where status = 'completed'";
    // On a slow machine the time limit may end one that has just committed: it is done, and not counted.
    assert!(run::<_, _, Failed>(&db, recovery, handler, good).await <= 8);
    assert!((0..8).all(|n| calls.of(&format!("good{n}")) >= 1));
    assert!(calls.of("error0") >= 1);
    assert_eq!(abandoned(&db).await.len(), 16, "they still wait for their turn");
}

type Failed = Box<dyn std::error::Error + Send + Sync>;

#[tokio::test]
async fn what_an_operator_lets_run_again_is_run_again() {
    let db = TestDb::new().await;
    abandon(&db, ["k".to_owned()]).await;
    db.execute("update {}.unfinished set tries = 9, try_at = {}._clock() + interval '1 hour'")
        .await;
    let (scope, key) = (Scope::new("test/scope").unwrap(), Key::new("k").unwrap());
    let mut tx = db.pool.begin().await.unwrap();
    let seen = db.once.inspect(&mut tx, &scope, &key).await.unwrap().unwrap().record;
    let claim = db.once.take_over_claim(&mut tx, &scope, &key, &seen).await.unwrap();
    claim.release(&mut tx).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(abandoned(&db).await, ["k"]);
    let (once, pool) = (db.once.clone(), db.pool.clone());
    let handler = move |found| finish(once.clone(), pool.clone(), found);
    let done = "select count(*) = 1 from {}.keys where status = 'completed'";
    assert_eq!(run(&db, recovery(&db), handler, done).await, 1);
}

#[tokio::test]
async fn a_shutdown_waits_for_the_handlers_that_run() {
    let db = TestDb::new().await;
    abandon(&db, ["first", "second"].map(str::to_owned)).await;
    let (entered, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (stop, stopped) = oneshot::channel::<()>();
    let calls = Calls::default();
    let handler = {
        let (entered, go_on, calls) = (entered.clone(), go_on.clone(), calls.clone());
        let (once, pool) = (db.once.clone(), db.pool.clone());
        move |found: Listed| {
            calls.count(&found.key);
            let (entered, go_on) = (entered.clone(), go_on.clone());
            let (once, pool) = (once.clone(), pool.clone());
            async move {
                entered.notify_one();
                go_on.notified().await;
                finish(once, pool, found).await
            }
        }
    };
    let (recovery, pool) = (recovery(&db).concurrency(1).unwrap(), db.pool.clone());
    let mut task = tokio::spawn(async move { recovery.run_until(pool, handler, stopped).await });
    entered.notified().await;
    drop(stop);
    let early = tokio::time::timeout(Duration::from_millis(50), &mut task).await;
    assert!(early.is_err(), "it did not wait for its handler");
    go_on.notify_one();
    assert_eq!(task.await.unwrap(), 1);
    assert_eq!((calls.of("first"), calls.of("second")), (1, 0), "and it began no other");
}

#[tokio::test]
async fn recovery_goes_on_when_the_database_comes_back() {
    let db = TestDb::new().await;
    abandon(&db, ["k".to_owned()]).await;
    // The recovery cannot search: the table is missing.
    db.execute("alter table {}.unfinished rename to away").await;
    let (once, pool) = (db.once.clone(), db.pool.clone());
    let handler = move |found| finish(once.clone(), pool.clone(), found);
    let done = "select count(*) = 1 from {}.keys where status = 'completed'";
    let recovering = run(&db, recovery(&db), handler, done);
    let asked = format!(
        "select count(*) > 0 from pg_stat_activity
          where application_name = '{}' and query like '%pick_abandoned%' and pid <> pg_backend_pid()",
        db.schema
    );
    let back = async {
        db.until(&asked).await;
        db.execute("alter table {}.away rename to unfinished").await;
    };
    let (recovered, ()) = tokio::join!(recovering, back);
    assert_eq!(recovered, 1);
}

/// A worker's job: does its step, then waits to be killed.
pub async fn leave(db: &TestDb, parent: &Parent) {
    let (op, lease) = (op("k"), Lease::new(Duration::from_secs(1)).unwrap());
    let run = db.once.run_leased(&db.pool, &op, lease, async |work: &mut Work| {
        work.step("only", async || Ok::<_, Failure>("from the dead".to_owned())).await?;
        parent.say("there");
        parent.hear().await;
        Ok::<_, Failure>(String::new())
    });
    run.await.unwrap();
}

#[tokio::test]
async fn the_work_of_a_killed_process_goes_on_within_its_lease_and_a_second() {
    let db = TestDb::new().await;
    let (once, pool) = (db.once.clone(), db.pool.clone());
    let handler = move |found| finish(once.clone(), pool.clone(), found);
    let mut worker = Worker::spawn(&db, "leave");
    let recovery = Recovery::new(&db.once, "test/%").unwrap();
    let done = "select count(*) = 1 from {}.keys where status = 'completed'";
    let recovering = run(&db, recovery, handler, done);
    let dying = async {
        assert_eq!(worker.hear().await, "there");
        let killed = Instant::now();
        worker.kill().await;
        killed
    };
    let (recovered, killed) = tokio::join!(recovering, dying);
    let took = killed.elapsed();
    assert!(took <= Duration::from_secs(2), "{took:?}");
    assert_eq!(recovered, 1);
    let value: String =
        db.ask("select convert_from(response_body, 'UTF8') from {}.idempotency_keys").await;
    assert_eq!(value, "\"from the dead\"", "the step was not done again");
}
