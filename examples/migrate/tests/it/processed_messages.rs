//! From a table of processed messages.

use std::io::BufRead;

use tokio::time::Instant;

use crate::database::{Database, PATIENCE};
use crate::process::Process;
use crate::service::start;

const SCHEMA: &str = include_str!("../../processed-messages/schema.sql");
const MOVE: &str = include_str!("../../processed-messages/move.sql");
const BEFORE: &str = "processed-messages-before";
const BOTH: &str = "processed-messages-both";
const AFTER: &str = "processed-messages-after";

const EMPTY: &str = "select (count(*) = 0)::int::bigint from queue where dead is null";

async fn consumer(program: &str, db: &Database) -> Process {
    let mut process = start(program, &[("DATABASE_URL", db.url.clone())]);
    let deadline = Instant::now() + PATIENCE;
    while process.log().as_bytes().lines().next().is_none() {
        process.must_run();
        assert!(Instant::now() < deadline, "{program} does not start");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    process
}

impl Database {
    /// As a publisher, or a broker that delivers again what was acknowledged.
    async fn publish(&self, message: &str) {
        self.execute(&format!("insert into queue (message_id, cents) values ('{message}', 1)"))
            .await;
    }

    async fn orders(&self) -> i64 {
        self.number("select count(*) from orders").await
    }
}

/// Kills the consumer at the statement behind its order, or at its commit, and starts it again.
async fn killed_behind_the_order(program: &str) -> i64 {
    let db = Database::new(SCHEMA).await;
    let held = db.hold("lock table processed_messages in share mode").await;
    let process = consumer(program, &db).await;
    db.publish("a").await;
    match program {
        AFTER => db.until("select count(*) from orders", 1).await,
        _ => db.until_waiting(1).await,
    }
    let orders = db.orders().await;
    process.kill();
    db.until_none_waits().await;
    drop(held);
    let _process = consumer(program, &db).await;
    if program == BEFORE {
        assert_eq!(orders, 1, "the work is committed");
    }
    if db.number(EMPTY).await == 1 {
        db.publish("a").await;
    }
    db.until(EMPTY, 1).await;
    db.orders().await
}

#[tokio::test]
async fn before_orders_twice_when_killed_between_order_and_note() {
    assert_eq!(killed_behind_the_order(BEFORE).await, 2);
}

#[tokio::test]
async fn both_and_after_order_once() {
    assert_eq!(killed_behind_the_order(BOTH).await, 1);
    assert_eq!(killed_behind_the_order(AFTER).await, 1);
}

/// The broker delivers a message to two consumers at once.
#[tokio::test]
async fn before_orders_twice_when_two_consumers_have_the_message() {
    let db = Database::new(SCHEMA).await;
    let held = db.hold("lock table orders in share mode").await;
    let _consumers = [consumer(BEFORE, &db).await, consumer(BEFORE, &db).await];
    db.publish("a").await;
    db.until_waiting(1).await;
    db.until_waiting(2).await; // its time is over: it is delivered again
    drop(held);
    db.until(EMPTY, 1).await;
    db.until("select count(*) from orders", 2).await;
}

async fn orders_once_under_kills(program: &str) {
    let db = Database::new(SCHEMA).await;
    let seed = fastrand::u64(..);
    println!("{program}: seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut published = 0;
    for _ in 0..12 {
        for _ in 0..20 {
            db.publish(&format!("m{published}")).await;
            published += 1;
        }
        let process = consumer(program, &db).await;
        let enough = db.orders().await + random.i64(1..=18);
        db.until("select count(*) from orders", enough.min(published)).await;
        process.kill();
    }
    let _process = consumer(program, &db).await;
    db.until(EMPTY, 1).await;
    let distinct = db.number("select count(distinct message_id) from orders").await;
    assert_eq!((db.orders().await, distinct), (published, published));
    assert_eq!(db.number("select count(*) from queue").await, 0, "dead");
}

#[tokio::test]
async fn both_orders_once_under_kills() {
    orders_once_under_kills(BOTH).await;
}

#[tokio::test]
async fn after_orders_once_under_kills() {
    orders_once_under_kills(AFTER).await;
}

#[tokio::test]
async fn moved_messages_are_seen() {
    let db = Database::new(SCHEMA).await;
    let process = consumer(BEFORE, &db).await;
    db.publish("a").await;
    db.until(EMPTY, 1).await;
    process.kill();

    // The old and the new consumer know what the other has processed.
    let process = consumer(BOTH, &db).await;
    db.publish("a").await;
    db.publish("b").await;
    db.until(EMPTY, 1).await;
    process.kill();
    let process = consumer(BEFORE, &db).await;
    db.publish("b").await;
    db.until(EMPTY, 1).await;
    db.publish("c").await;
    db.until(EMPTY, 1).await;
    process.kill();
    assert_eq!(db.orders().await, 3);

    let move_rows = ["backfill", "--retention", "15d", "--apply", "--json", "--from-query", MOVE];
    let moved: serde_json::Value = serde_json::from_str(&db.pgonce(&move_rows).await).unwrap();
    assert_eq!((&moved["counts"]["inserted"], &moved["counts"]["known"]), (&1.into(), &2.into()));
    let process = consumer(AFTER, &db).await;
    for message in ["a", "b", "c", "d"] {
        db.publish(message).await;
    }
    db.until(EMPTY, 1).await;
    process.kill();
    assert_eq!(db.orders().await, 4);

    // The way back, with the guide's statement.
    let guide = include_str!("../../processed-messages/README.md");
    let copy = guide.split("  ```sql\n").nth(1).unwrap().split("```").next().unwrap();
    db.execute(copy).await;
    let _process = consumer(BEFORE, &db).await;
    for message in ["a", "d"] {
        db.publish(message).await;
    }
    db.until(EMPTY, 1).await;
    assert_eq!(db.orders().await, 4);
}

#[tokio::test]
async fn a_message_that_cannot_be_handled_is_dead_only_with_pgonce() {
    let db = Database::new(SCHEMA).await;
    db.execute("alter table orders add check (cents > 0)").await;
    db.execute("insert into queue (message_id, cents) values ('bad', 0)").await;
    let process = consumer(BEFORE, &db).await;
    db.until("select deliveries::bigint from queue", 2).await; // and so on
    process.kill();
    // Nine attempts more, with shorter pauses.
    db.execute("update queue set visible_at = now()").await;
    let _process = consumer(AFTER, &db).await;
    let deadline = Instant::now() + PATIENCE;
    while db.number("select count(*) from queue where dead is not null").await == 0 {
        assert!(Instant::now() < deadline, "it is not dead");
        db.execute("update queue set visible_at = now() where dead is null").await;
    }
    assert_eq!(db.orders().await, 0);
}
