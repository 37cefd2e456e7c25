//! Processes that die or stall in leased work: another process takes over, finished steps do not run again, and late
//! writes are refused.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pgonce::{Claim, Error, ErrorKind, Failure, Key, Lease, PgOnce, Response, RunError, Work};
use sqlx::{AssertSqlSafe, PgPool};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::support::db::{TestDb, effect, lasting, op, started, waits};
use crate::support::worker::{Parent, Worker};

const LEASE: Duration = Duration::from_secs(1);
/// How long a key may be without a holder: the lease, plus the time to notice.
const RECOVERY_MAX: Duration = Duration::from_secs(2);
/// Longer than the previous process lives.
const LONG: Duration = Duration::from_secs(60);

fn lease() -> Lease {
    Lease::new(LEASE).unwrap()
}

/// A remote that honors keys and commits separately. A key's receipt is always the same.
async fn remote(db: &TestDb, name: &str, key: &Key) -> sqlx::Result<i64> {
    let sql = format!(
        "insert into {0}.remote (name, key, calls) values ($1, $2, 1)
         on conflict (key) do update set calls = {0}.remote.calls + 1 returning receipt",
        db.schema
    );
    let query = sqlx::query_scalar(AssertSqlSafe(sql)).bind(name).bind(key.as_str());
    query.fetch_one(&mut db.conn().await).await
}

/// Where a process is killed, in the order of the work, and what it did before. Earlier processes recorded the rest.
const PLACES: [(&str, &[&str]); 12] = [
    ("claimed", &[]),
    ("reserve, nothing written", &["reserve"]),
    ("reserve, written", &["reserve"]),
    ("reserve, recorded", &["reserve"]),
    ("charge, not called", &["charge"]),
    ("charge, called", &["charge"]),
    ("charge, recorded", &["charge"]),
    ("mail, not called", &["mail"]),
    ("mail, called", &["mail"]),
    ("mail, recorded", &["mail"]),
    ("not completed", &[]),
    ("completed", &[]),
];

/// A worker's job: does the work up to the place that its parent names.
pub async fn checkout(db: &TestDb, parent: &Parent) {
    let stop = parent.hear().await;
    drop(db.pool.acquire().await.unwrap());
    parent.say("ready");
    let at = async |place: &str| {
        if place == stop {
            parent.say(format!("at {place}"));
            parent.hear().await; // killed here
        }
    };
    let op = op("k").policy(waits(LONG));
    let run = db.once.run_leased(&db.pool, &op, lease(), async |work: &mut Work| {
        parent.say("claimed");
        at("claimed").await;
        work.step_tx("reserve", async |tx| {
            parent.say("reserve");
            at("reserve, nothing written").await;
            effect(tx, &db.schema, "reserve").await?;
            at("reserve, written").await;
            Ok::<_, Failure>(())
        })
        .await?;
        at("reserve, recorded").await;
        let mut receipts = Vec::new();
        for name in ["charge", "mail"] {
            let key = work.derived_key(name);
            let called = work.step(name, async || {
                parent.say(name);
                at(&format!("{name}, not called")).await;
                let receipt = remote(db, name, &key).await?;
                at(&format!("{name}, called")).await;
                Ok::<_, Failure>(receipt)
            });
            receipts.push(called.await?);
            at(&format!("{name}, recorded")).await;
        }
        effect(work.last_tx().await?, &db.schema, "order").await?;
        at("not completed").await;
        Ok::<_, Failure>(receipts)
    });
    let done = run.await.unwrap();
    at("completed").await;
    parent.say(format!("done: {:?}, replay: {}", *done, done.is_replay()));
}

/// Another process that waits for the key.
async fn standby(db: &TestDb, stop: &str) -> Worker {
    let mut worker = Worker::spawn(db, "checkout");
    worker.tell(stop).await;
    assert_eq!(worker.hear().await, "ready");
    worker
}

#[tokio::test]
async fn a_process_killed_anywhere_is_replaced_in_time_and_nothing_is_done_twice() {
    let db = TestDb::new().await;
    db.execute(
        "create table {}.remote (receipt bigint generated always as identity, name text not null,
                                 key text primary key, calls bigint not null)",
    )
    .await;
    let mut worker = standby(&db, PLACES[0].0).await;
    let mut killed = None::<Instant>;
    for (number, (place, expected)) in PLACES.into_iter().enumerate() {
        assert_eq!(worker.hear().await, "claimed");
        if let Some(killed) = killed {
            let recovery = killed.elapsed();
            assert!(recovery <= RECOVERY_MAX, "before {place}: {recovery:?}");
        }
        let mut ran = Vec::new();
        let there = loop {
            let line = worker.hear().await;
            if line.starts_with("at ") || line.starts_with("done") {
                break line;
            }
            ran.push(line);
        };
        assert_eq!(there, format!("at {place}"));
        assert_eq!(ran, expected, "{place}");
        let next = standby(&db, PLACES.get(number + 1).map_or("nowhere", |next| next.0)).await;
        let dying = std::mem::replace(&mut worker, next);
        killed = Some(Instant::now());
        dying.kill().await;
    }
    let receipts: String =
        db.ask("select string_agg(receipt::text, ', ' order by name) from {}.remote").await;
    assert_eq!(worker.hear().await, format!("done: [{receipts}], replay: true"));

    let effects = "select string_agg(key, ' ' order by key) from {}.effect";
    assert_eq!(db.ask::<String>(effects).await, "order reserve");
    let calls = "select string_agg(name || ' ' || calls, ', ' order by name) from {}.remote";
    // Once by the process killed before its record, once by its successor; still one effect per key.
    assert_eq!(db.ask::<String>(calls).await, "charge 2, mail 2");
    assert_eq!(db.ask::<i32>("select attempt from {}.idempotency_keys").await, 12);
}

/// What a process does when it wakes up after its claim was taken over.
#[derive(Debug, Clone, Copy)]
enum Late {
    /// Sends no heartbeat, so that each of these acts meets the fence itself.
    Step,
    StepTx,
    Progress,
    LastWrites,
    Complete,
    Fail,
    GiveBack,
    /// Sends heartbeats; the first refused one stops it.
    Beats,
}

const LATE: [Late; 8] = [
    Late::Step,
    Late::StepTx,
    Late::Progress,
    Late::LastWrites,
    Late::Complete,
    Late::Fail,
    Late::GiveBack,
    Late::Beats,
];
/// The same for a claim from begin_leased.
const LATE_VERBS: [&str; 4] = ["extend", "complete", "fail", "release"];

/// Where workers and their parent meet.
#[derive(Clone)]
struct Gate {
    begun: Arc<Semaphore>,
    go: Arc<Semaphore>,
}

impl Gate {
    async fn pass(&self) {
        self.begun.add_permits(1);
        self.go.acquire().await.unwrap().forget();
    }
}

async fn late(once: PgOnce, pool: PgPool, schema: String, act: Late, gate: Gate) -> String {
    let silent = !matches!(act, Late::Beats);
    let lease = if silent { lease().renewed_for(Duration::ZERO) } else { lease() };
    let op = op(&format!("{act:?}"));
    let run = once.run_leased(&pool, &op, lease, async |work: &mut Work| {
        if !silent {
            gate.begun.add_permits(1);
            std::future::pending::<()>().await;
        }
        gate.pass().await;
        match act {
            Late::Step => work.step("late", async || Ok::<_, Failure>(())).await?,
            Late::StepTx => {
                work.step_tx("late", async |tx| effect(tx, &schema, "late").await).await?;
            }
            Late::Progress => work.progress("late").await?,
            Late::LastWrites => {
                effect(work.last_tx().await?, &schema, "late").await?;
            }
            Late::Fail => return Err(Failure::keep(Response::bytes("late"))),
            Late::GiveBack => return Err(Failure::from("late")),
            Late::Complete | Late::Beats => {}
        }
        Ok("late".to_owned())
    });
    let outcome = match run.await {
        Err(RunError::Protocol(error)) => format!("{:?}", error.kind()),
        Err(RunError::Work { error, .. }) => format!("failed: {error:?}"),
        other => format!("{other:?}"),
    };
    format!("{act:?}: {outcome}")
}

async fn late_verb(pool: PgPool, mut claim: Claim, verb: &'static str, gate: Gate) -> String {
    gate.pass().await;
    let mut conn = pool.acquire().await.unwrap();
    let outcome: Result<(), Error> = match verb {
        "extend" => claim.extend(&pool, lasting(LONG)).await,
        "complete" => claim.complete(&mut conn, Response::bytes("late")).await,
        "fail" => claim.fail(&mut conn, Response::bytes("late")).await,
        _ => claim.release(&mut conn).await,
    };
    format!("{verb}: {:?}", outcome.map_err(|error| error.kind()))
}

/// A worker's job: takes claims, and continues with them when its parent says so.
pub async fn stall(db: &TestDb, parent: &Parent) {
    let gate = Gate { begun: Arc::new(Semaphore::new(0)), go: Arc::new(Semaphore::new(0)) };
    let mut acts = JoinSet::new();
    for act in LATE {
        let schema = db.schema.clone();
        acts.spawn(late(db.once.clone(), db.pool.clone(), schema, act, gate.clone()));
    }
    for verb in LATE_VERBS {
        let claim = db.lease(&op(verb), LEASE).await;
        acts.spawn(late_verb(db.pool.clone(), claim, verb, gate.clone()));
    }
    let count = u32::try_from(LATE.len() + LATE_VERBS.len()).unwrap();
    gate.begun.acquire_many(count).await.unwrap().forget();
    parent.say("begun");
    parent.hear().await;
    gate.go.add_permits(LATE.len() + LATE_VERBS.len());
    while let Some(outcome) = acts.join_next().await {
        parent.say(outcome.unwrap());
    }
}

/// Takes the key over, like another process that outlives the first lease.
async fn take_over(db: &TestDb, key: &str) {
    if LATE_VERBS.contains(&key) {
        let mut conn = db.conn().await;
        let claim = started(db.once.begin_leased(&db.pool, &op(key), lasting(LONG)).await.unwrap());
        return claim.complete(&mut conn, Response::json("the second's").unwrap()).await.unwrap();
    }
    let lease = Lease::new(LONG).unwrap();
    let op = op(key).policy(waits(LONG));
    let done = db.once.run_leased(&db.pool, &op, lease, async |work: &mut Work| {
        assert_eq!(work.attempt(), 2);
        work.step("own", async || Ok::<_, Failure>("the second's".to_owned())).await
    });
    assert_eq!(*done.await.unwrap(), "the second's");
}

#[tokio::test]
async fn a_process_stopped_past_its_lease_can_write_nothing_when_it_wakes_up() {
    let db = TestDb::new().await;
    let mut worker = Worker::spawn(&db, "stall");
    assert_eq!(worker.hear().await, "begun");
    // The process is alive and renews the lease.
    db.until(
        "select lease_expires_at > created_at + interval '1.2 s'
           from {}.idempotency_keys where key = 'Beats'",
    )
    .await;
    worker.signal("STOP").await;
    db.until("select every(lease_expires_at < {}._clock()) from {}.idempotency_keys").await;
    let keys = LATE.iter().map(|act| format!("{act:?}"));
    let keys = keys.chain(LATE_VERBS.map(str::to_owned)).collect::<Vec<_>>();
    for key in &keys {
        take_over(&db, key).await;
    }
    worker.signal("CONT").await;
    worker.tell("go on").await;
    let mut outcomes = Vec::new();
    for _ in &keys {
        outcomes.push(worker.hear().await);
    }
    assert!(worker.ended().await.success());
    for (number, key) in keys.iter().enumerate() {
        let refused = match key.as_str() {
            "GiveBack" => "failed: Failure(late)".to_owned(),
            _ if number < LATE.len() => format!("{:?}", ErrorKind::ClaimLost),
            _ => format!("Err({:?})", ErrorKind::ClaimLost),
        };
        assert!(outcomes.contains(&format!("{key}: {refused}")), "{key}: {outcomes:?}");
    }
    let untouched =
        "select every(status = 2 and attempt = 2 and response_body = '\"the second''s\"'
                                  and progress is null and last_error is null)
                       from {}.idempotency_keys";
    assert!(db.ask::<bool>(untouched).await);
    assert_eq!(db.ask::<i64>("select count(*) from {}.steps where name <> 'own'").await, 0);
    assert_eq!(db.effects().await, 0);
}
