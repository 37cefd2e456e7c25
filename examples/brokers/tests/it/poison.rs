//! Messages that always fail end in the dead-letter queue, and delay no other message.

use tokio::time::Instant;

use crate::database::{Database, PATIENCE};
use crate::kills::{Broker, drain, order};

/// More than a consumer handles at once.
const POISON: usize = 25;
const OTHERS: usize = 50;

pub async fn it_is_put_aside_while_others_pass(broker: &mut impl Broker) {
    let db = Database::new().await;
    let mut messages: Vec<_> =
        (0..POISON).map(|n| (format!("poison{n}"), "poor 5".to_owned())).collect();
    messages.push(("nonsense".to_owned(), "no order".to_owned()));
    messages.extend((0..OTHERS).map(order));
    broker.publish(&messages).await;

    let mut consumer = broker.consumer(&db);
    let others = i64::try_from(OTHERS).unwrap();
    db.until("select count(*) from orders", others, &mut consumer).await;
    let dead = broker.dead_letters().await;
    // The pauses between a message's attempts add up to nearly four seconds.
    assert!(dead.iter().all(|(id, _)| id == "nonsense"), "others waited for poison: {dead:?}");

    let deadline = Instant::now() + PATIENCE;
    let mut dead = dead;
    while dead.len() <= POISON {
        consumer.must_run();
        assert!(Instant::now() < deadline, "only {dead:?}");
        dead = broker.dead_letters().await;
    }
    consumer.kill();
    for (id, reason) in &dead {
        let expected = match id.as_str() {
            "nonsense" => "it has failed for good",
            _ => "a database error (SQLSTATE 23514)", // the balance is too low
        };
        assert_eq!(reason, expected, "{id}");
    }
    assert_eq!(dead.len(), POISON + 1);
    drain(broker, &db).await;
    db.exactly(others).await;
    let attempts = "select min(attempt)::bigint * 1000 + max(attempt) from pgonce.idempotency_keys
                     where key like 'poison%'";
    assert_eq!(db.number(attempts).await, 5005, "each was tried five times");
}

/// The consumer dies each time it handles the message, and cannot report a failure.
pub async fn it_is_put_aside_though_it_kills_its_consumer(broker: &mut impl Broker) {
    let db = Database::new().await;
    let mut lock = db.pool.begin().await.unwrap();
    sqlx::query("select from account where customer = 'busy' for update")
        .execute(&mut *lock)
        .await
        .unwrap();
    let killer = ("killer".to_owned(), "busy 1".to_owned());
    let messages: Vec<_> = std::iter::once(killer).chain((0..OTHERS).map(order)).collect();
    broker.publish(&messages).await;

    let all = i64::try_from(OTHERS).unwrap();
    let stuck = "select count(*) from pg_stat_activity where datname = current_database()
                    and wait_event_type = 'Lock' and query like 'update account%'";
    let mut kills = 0;
    let deadline = Instant::now() + PATIENCE;
    let dead = 'consumers: loop {
        let mut consumer = broker.consumer(&db);
        // A dying consumer takes other messages in progress with it, which would count attempts too. So finish those
        // first.
        db.until("select count(*) from orders", all, &mut consumer).await;
        while db.number(stuck).await == 0 {
            consumer.must_run();
            assert!(Instant::now() < deadline, "killed {kills} times");
            let dead = broker.dead_letters().await;
            if !dead.is_empty() {
                consumer.kill();
                break 'consumers dead;
            }
        }
        consumer.kill();
        kills += 1;
        // Five attempts count. The first delivery does not count if the broker says that it is the first.
        assert!(kills <= 6, "it keeps killing consumers");
        // The server soon notices that the session's client is gone.
        while db.number(stuck).await > 0 {
            assert!(Instant::now() < deadline, "the session of a dead consumer stays");
        }
    };
    println!("killed {kills} times");
    assert!(kills >= 5);
    assert_eq!(dead, [("killer".to_owned(), "its attempts are used up".to_owned())]);
    db.exactly(all).await;
}
