//! Repeated `kill -9` of a server under load: every payment is made once, and every client gets its response.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use http::StatusCode;
use http::header::RETRY_AFTER;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::Got;
use super::example::{Caller, Example};
use crate::support::db::TestDb;

const PAYMENTS: u32 = 500;
/// Concurrent requests. Clients that pause before a retry do not count.
const AT_ONCE: usize = 16;
/// Clients honor `Retry-After` up to this limit: the test must end.
const PAUSE_MAX: Duration = Duration::from_millis(250);
/// A client's pause before it tries an unreachable server again.
const AWAY: Duration = Duration::from_millis(20);
const STORM_MAX: Duration = Duration::from_secs(120);

/// Shared by all clients.
struct Clients {
    caller: Caller,
    path: &'static str,
    places: Semaphore,
    answered: watch::Sender<u32>,
    in_flight: watch::Sender<i32>,
    /// The number of kills, counted just before each kill.
    kills: AtomicU32,
    /// Requests that a living server got and never answered.
    cut: AtomicU32,
    /// Payments whose first success was a replay: done before, but the client had got no response.
    replayed: AtomicU32,
}

impl Clients {
    /// Sends one payment with its own key until the response is a 201.
    async fn pay(&self, number: u32) -> Value {
        let (key, account) = (format!("key-{number}"), format!("account-{number}"));
        let body = json!({"account": account, "amount": 1000 + number, "currency": "EUR"});
        loop {
            let place = self.places.acquire().await.unwrap();
            let kills = self.kills.load(Ordering::Relaxed);
            self.in_flight.send_modify(|count| *count += 1);
            let sent = self.caller.post(self.path, &key, &body.to_string()).await;
            self.in_flight.send_modify(|count| *count -= 1);
            drop(place);
            let pause = match sent {
                Ok(got) if got.status == StatusCode::CREATED && !got.body.is_empty() => {
                    self.replayed.fetch_add(u32::from(got.is_replay()), Ordering::Relaxed);
                    self.answered.send_modify(|count| *count += 1);
                    return got.json();
                }
                Ok(got) => pause(&got),
                Err(error) if error.is_connect() => AWAY,
                Err(_) => {
                    // Does not count requests that met a dead connection of the client's pool.
                    let cut = kills < self.kills.load(Ordering::Relaxed);
                    self.cut.fetch_add(u32::from(cut), Ordering::Relaxed);
                    AWAY
                }
            };
            tokio::time::sleep(pause).await;
        }
    }
}

/// How long a response other than 201 asks the client to wait.
fn pause(got: &Got) -> Duration {
    let retryable = [StatusCode::CONFLICT, StatusCode::SERVICE_UNAVAILABLE];
    assert!(got.body.is_empty() || retryable.contains(&got.status), "{got:?}");
    let seconds = got.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    Duration::from_secs(seconds.unwrap_or(0)).clamp(AWAY, PAUSE_MAX)
}

/// Runs all payments while the server is killed and restarted `kills` times. Returns the clients' responses.
async fn storm(db: &TestDb, path: &'static str, kills: u32) -> BTreeMap<u32, Value> {
    let seed = std::env::var("PGONCE_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("to repeat this run: PGONCE_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);

    let port = free_port(&mut random);
    let server = Example::start(db, port).await;
    slow_down(db).await;
    let clients = Arc::new(Clients {
        caller: Caller::new(&server.address),
        path,
        places: Semaphore::new(AT_ONCE),
        answered: watch::Sender::new(0),
        in_flight: watch::Sender::new(0),
        kills: AtomicU32::new(0),
        cut: AtomicU32::new(0),
        replayed: AtomicU32::new(0),
    });
    let mut paying = JoinSet::new();
    for number in 0..PAYMENTS {
        let clients = Arc::clone(&clients);
        paying.spawn(async move { (number, clients.pay(number).await) });
    }

    // Joined, so that a client's failure shows at once.
    let killing = kill_again_and_again(db, server, &clients, kills, &mut random);
    let (told, ()) = tokio::join!(paying.join_all(), killing);
    let (cut, replayed) =
        (clients.cut.load(Ordering::Relaxed), clients.replayed.load(Ordering::Relaxed));
    println!(
        "{path}: {kills} kills cut {cut} requests; {replayed} had been done and not been told"
    );
    assert!(cut >= kills, "the kills hit nothing");
    told.into_iter().collect()
}

/// Kills the server at random moments of the work, and restarts it on the same port.
async fn kill_again_and_again(
    db: &TestDb,
    mut server: Example,
    clients: &Clients,
    kills: u32,
    random: &mut fastrand::Rng,
) {
    let port = server.port();
    let step = PAYMENTS / (kills + 1);
    for kill in 1..=kills {
        let due = kill * step - random.u32(..step / 2);
        clients.answered.subscribe().wait_for(|answered| *answered >= due).await.unwrap();
        clients.in_flight.subscribe().wait_for(|count| *count > 0).await.unwrap();
        // Random, so that a kill does not always follow a response.
        tokio::time::sleep(Duration::from_micros(random.u64(..20_000))).await;
        clients.kills.store(kill, Ordering::Relaxed);
        server.kill().await;
        server = Example::start(db, port).await;
    }
    let all = |answered: &u32| *answered == PAYMENTS;
    clients.answered.subscribe().wait_for(all).await.unwrap(); // with the last server alive
}

/// Slows down writes, so that many kills come between an effect and its end.
async fn slow_down(db: &TestDb) {
    let slow = "create function slow() returns trigger language plpgsql as
                  $$ begin perform pg_sleep(0.02); return null; end $$;
                create trigger slow after insert on payments_example.payment
                  for each row execute function slow();
                create trigger slow after insert on payments_example.charge
                  for each row execute function slow()";
    db.execute(slow).await;
}

/// A port below those for clients: while the server is away, a client could otherwise get the server's port and connect
/// to itself.
fn free_port(random: &mut fastrand::Rng) -> u16 {
    let ports = std::iter::repeat_with(|| random.u16(20_000..32_000));
    ports.take(100).find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok()).unwrap()
}

/// Every payment exists once, as its client learned, and nothing else exists.
async fn all_once(db: &TestDb, list: &str, id: &str, told: &BTreeMap<u32, Value>) {
    let server = Example::start(db, 0).await;
    let there = Caller::new(&server.address).get(list).await.json();
    let there = there.as_array().unwrap();
    let ids: BTreeSet<_> = there.iter().map(|row| row[id].as_i64().unwrap()).collect();
    let accounts: BTreeSet<_> = there.iter().map(|row| row["account"].as_str().unwrap()).collect();
    let n = PAYMENTS as usize;
    assert_eq!((there.len(), ids.len(), accounts.len()), (n, n, n), "rows, ids, payments");
    for (number, answer) in told {
        assert_eq!(answer["account"], format!("account-{number}"));
        assert!(there.contains(answer), "a client was told of what is not there: {answer}");
    }
    assert_eq!(db.ask::<i64>("select count(*) from {}.keys where status = 'completed'").await, 500);
}

#[tokio::test(flavor = "multi_thread")]
async fn payments_survive_ten_kills_of_the_server() {
    let db = TestDb::in_new_database().await;
    let storm = storm(&db, "/payments", 10);
    let told = tokio::time::timeout(STORM_MAX, storm).await.expect("every payment is answered");
    all_once(&db, "/payments", "payment_id", &told).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn charges_survive_five_kills_of_the_server() {
    let db = TestDb::in_new_database().await;
    let storm = storm(&db, "/charges", 5);
    let told = tokio::time::timeout(STORM_MAX, storm).await.expect("every charge is answered");
    all_once(&db, "/charges", "charge_id", &told).await;

    // The provider got one key per payment, and charged one card per key.
    let keys = "select count(distinct key) from card_provider_example.call";
    assert_eq!(db.ask::<i64>(keys).await, 500);
    let charged = "select count(*) = 500 and count(distinct account) = 500
                     from card_provider_example.charge";
    assert!(db.ask::<bool>(charged).await);
    let receipts = "select count(*) from payments_example.charge c
                      join card_provider_example.charge p using (receipt, account, amount)";
    assert_eq!(db.ask::<i64>(receipts).await, 500);
    let again = "select count(*) - count(distinct key) from card_provider_example.call";
    let again: i64 = db.ask(again).await;
    println!("{again} calls to the provider were repeats");
    assert!(again > 0, "no kill came between the call to the provider and its completion");
}
