//! A consumer that is killed repeatedly loses nothing and does nothing twice, with any broker.

use std::collections::HashSet;
use std::time::Duration;

use crate::database::{CUSTOMERS, Database, PATIENCE};
use crate::process::Process;
use tokio::time::Instant;

const MESSAGES: usize = 1000;
const KILLS: usize = 10;

/// A broker, as the test sees it.
pub trait Broker {
    /// Publishes messages, each with id and body, in this order.
    async fn publish(&mut self, messages: &[(String, String)]);

    /// Starts the example as another process that consumes the messages.
    fn consumer(&self, db: &Database) -> Process;

    /// Fails if the broker no longer has a message that is not in `done`. Returns how many finished messages it will
    /// redeliver, because their consumer died in between.
    async fn compare(&mut self, done: impl AsyncFnOnce() -> HashSet<String>) -> usize;

    /// How many messages the broker still has. The count may be too low while a consumer runs.
    async fn held(&mut self) -> usize;

    /// The dead-letter queue: ids and reasons.
    async fn dead_letters(&mut self) -> Vec<(String, String)>;
}

pub fn order(n: usize) -> (String, String) {
    (format!("m{n}"), format!("customer-{} {}", n % CUSTOMERS + 1, n % 7 + 1))
}

pub async fn every_message_takes_effect_once(broker: &mut impl Broker) {
    // Enough attempts: no message is at fault, however often its consumer is killed.
    let db = Database { attempts: 100, ..Database::new().await };
    // Every tenth is published twice, the second time 50 messages later.
    let again = |n: usize| n.checked_sub(50).filter(|n| n % 10 == 0).map(order);
    let orders: Vec<_> = (0..MESSAGES + 50)
        .flat_map(|n| [(n < MESSAGES).then(|| order(n)), again(n)])
        .flatten()
        .collect();
    broker.publish(&orders).await;

    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut again = 0;
    for kill in 0..KILLS {
        let mut consumer = broker.consumer(&db);
        let moment = i64::try_from(kill * 95 + random.usize(1..95)).unwrap();
        let moment = moment.max(db.orders().await + 1);
        db.until("select count(*) from orders", moment, &mut consumer).await;
        consumer.kill();
        again += broker.compare(async || db.done().await).await;
    }
    println!("{again} deliveries came again though they were done, because of the kills");

    drain(broker, &db).await;
    db.exactly(i64::try_from(MESSAGES).unwrap()).await;
    assert!(broker.dead_letters().await.is_empty());
}

/// Runs consumers until the broker has no messages.
pub async fn drain(broker: &mut impl Broker, db: &Database) {
    let deadline = Instant::now() + PATIENCE;
    // A consumer that is killed before it acknowledges leaves a message, so each gets more time than the last.
    let mut time = Duration::from_millis(100);
    loop {
        let mut consumer = broker.consumer(db);
        let started = Instant::now();
        while broker.held().await > 0 || started.elapsed() < time {
            consumer.must_run();
            assert!(Instant::now() < deadline, "messages are left");
        }
        consumer.kill();
        // The broker's count is complete only while no consumer runs.
        if broker.held().await == 0 {
            return;
        }
        time *= 2;
    }
}
