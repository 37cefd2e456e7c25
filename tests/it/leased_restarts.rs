//! A server that dies repeatedly during leased work.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pgonce::{Failure, HeldBecause, Key, Lease, OnLapse, RunError, Work};
use sqlx::postgres::PgPoolOptions;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::restartable::Restartable;
use crate::support::db::{TestDb, effect, on_lapse, op};

const OPERATIONS: usize = 2000;
const CLIENTS: usize = 24;
/// Answers between two restarts: they take a second or two.
const ANSWERS_BETWEEN: usize = 200;
const LEASE: Duration = Duration::from_secs(1);

/// A remote that honors keys: its receipts, and how often each key was sent.
#[derive(Default)]
struct Remote(Mutex<HashMap<Key, (usize, u32)>>);

impl Remote {
    async fn charge(&self, key: &Key) -> usize {
        tokio::time::sleep(Duration::from_millis(1)).await; // a slow network
        let mut charges = self.0.lock().unwrap();
        let next = charges.len();
        let (receipt, calls) = charges.entry(key.clone()).or_insert((next, 0));
        *calls += 1;
        *receipt
    }
}

#[derive(Default)]
struct Progress {
    begun: AtomicUsize,
    answered: AtomicUsize,
    changed: Notify,
}

fn is_careful(number: usize) -> bool {
    number % 10 == 7
}

/// A client: retries its request until it gets an answer. `None`: the key is held.
async fn client(db: &TestDb, remote: &Remote, number: usize) -> Option<usize> {
    let key = format!("k{number}");
    let policy = if is_careful(number) { OnLapse::Hold } else { OnLapse::Retry };
    let op = op(&key).policy(on_lapse(policy));
    let lease = Lease::new(LEASE).unwrap();
    loop {
        let run = db.once.run_leased(&db.pool, &op, lease, async |work: &mut Work| {
            let ledger = format!("{key} ledger");
            work.step_tx("ledger", async |tx| effect(tx, &db.schema, &ledger).await).await?;
            let at_remote = work.derived_key("charge");
            let charge = async || Ok::<_, Failure>(remote.charge(&at_remote).await);
            let receipt = work.step("charge", charge).await?;
            let order = format!("{key} order");
            effect(work.last_tx().await?, &db.schema, &order).await?;
            Ok::<_, Failure>(receipt)
        });
        match run.await {
            Ok(receipt) => return Some(receipt.into_inner()),
            Err(RunError::Held(held)) => {
                assert_eq!(held.because(), HeldBecause::Lapsed);
                assert!(is_careful(number), "{key}");
                return None;
            }
            Err(error) => assert!(error.is_retryable(), "{key}: {error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await; // a client's pause
    }
}

/// Two clients send every fifth request.
fn requests() -> Vec<usize> {
    (0..OPERATIONS).flat_map(|n| std::iter::repeat_n(n, if n % 5 == 0 { 2 } else { 1 })).collect()
}

async fn clients(db: &Arc<TestDb>, remote: &Arc<Remote>, progress: &Arc<Progress>) {
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let (db, remote, progress) = (Arc::clone(db), Arc::clone(remote), Arc::clone(progress));
        clients.spawn(async move {
            let requests = requests();
            while let Some(number) = requests.get(progress.begun.fetch_add(1, Ordering::Relaxed)) {
                if let Some(receipt) = client(&db, &remote, *number).await {
                    let key = op(&format!("k{number}")).derived_key("charge");
                    assert_eq!(remote.0.lock().unwrap()[&key].0, receipt, "k{number}");
                }
                progress.answered.fetch_add(1, Ordering::Relaxed);
                progress.changed.notify_one();
            }
        });
    }
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
}

/// Stops and starts the server while the clients work. Returns the time of its last start, in seconds on its own clock.
async fn restarts(server: &mut Restartable, db: &TestDb, progress: &Progress) -> f64 {
    let mut up = 0.0;
    for goal in (ANSWERS_BETWEEN..OPERATIONS).step_by(ANSWERS_BETWEEN) {
        while progress.answered.load(Ordering::Relaxed) < goal {
            progress.changed.notified().await;
        }
        server.stop_immediately().await;
        server.start_again().await;
        up = db.ask("select extract(epoch from {}._clock())::float8").await;
    }
    up
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_again_and_again_leaves_no_key_stuck_and_no_effect_double() {
    let mut server = Restartable::start().await;
    let mut db = TestDb::create("restarts", server.connect_options(), 20).await;
    db.pool = PgPoolOptions::new()
        .max_connections(20)
        .acquire_timeout(Duration::from_secs(2)) // sqlx retries at least every fifth of it
        .connect_lazy_with(db.options.clone());
    let db = Arc::new(db);
    let (remote, progress) = (Arc::new(Remote::default()), Arc::new(Progress::default()));
    let (up, ()) =
        tokio::join!(restarts(&mut server, &db, &progress), clients(&db, &remote, &progress));

    let keys: i64 = db.ask("select count(*) from {}.idempotency_keys").await;
    assert_eq!(keys, i64::try_from(OPERATIONS).unwrap());
    let stuck = "select count(*) from {}.idempotency_keys
                  where status <> 2 and not (status = 1 and right(key, 1) = '7')";
    assert_eq!(db.ask::<i64>(stuck).await, 0);
    // Keys begun before the last restart ended, or were held, in time.
    let late = format!(
        "select count(*) from {{}}.idempotency_keys
          where created_at < to_timestamp({up})
            and coalesce(completed_at, lease_expires_at) > to_timestamp({up}) + 3 * interval '{} s'",
        LEASE.as_secs()
    );
    assert_eq!(db.ask::<i64>(&late).await, 0);
    assert!(db.ask::<bool>("select max(attempt) > 1 from {}.idempotency_keys").await);

    let unlisted = "select count(*) from {}.unfinished u
                      full join (select * from {}.idempotency_keys where status = 1) k using (scope, key)
                     where u.scope is null or k.scope is null";
    assert_eq!(db.ask::<i64>(unlisted).await, 0);

    // One effect of each kind per finished key, never two.
    let wrong = "select count(*) from {}.idempotency_keys k,
                    lateral (select count(*) from {}.effect e where e.key = k.key || ' ledger') l (ledgers),
                    lateral (select count(*) from {}.effect e where e.key = k.key || ' order') o (orders),
                    lateral (select count(*) from {}.steps s where s.key = k.key) s (recorded)
                  where case status when 2 then (ledgers, orders, recorded) <> (1, 1, 2)
                                    else ledgers > 1 or orders > 0 end";
    db.execute("create index on {}.effect (key)").await;
    assert_eq!(db.ask::<i64>(wrong).await, 0);
    let completed: i64 = db.ask("select count(*) from {}.idempotency_keys where status = 2").await;
    let charges = remote.0.lock().unwrap();
    assert!((completed..=keys).contains(&i64::try_from(charges.len()).unwrap()));
}
