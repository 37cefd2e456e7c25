//! From a middleware with a cache in memory.

use crate::database::Database;
use crate::service::Service;
use crate::storm;

const SCHEMA: &str = include_str!("../../memory-cache/schema.sql");
const BEFORE: &str = "memory-cache-before";
const BOTH: &str = "memory-cache-both";
const AFTER: &str = "memory-cache-after";

/// How many payments a program makes of one key.
struct Payments {
    after_a_restart: i64,
    on_two_instances: i64,
    at_once: i64,
}

async fn payments_by(program: &str) -> Payments {
    let db = Database::new(SCHEMA).await;
    let first = Service::start(program, &db, &[]).await;
    let paid = first.pay("restart", 1).await;
    assert_eq!(paid, first.pay("restart", 1).await, "the ordinary retry");
    first.kill();
    let first = Service::start(program, &db, &[]).await;
    assert_eq!(first.pay("restart", 1).await.status, 201);

    let second = Service::start(program, &db, &[]).await;
    for service in [&first, &second] {
        assert_eq!(service.pay("instances", 2).await.status, 201);
    }

    let held = db.hold_payments().await;
    let one = first.paying("at-once", 3);
    db.until_waiting(1).await;
    let other = first.paying("at-once", 3);
    let status = match program {
        BEFORE => {
            db.until_waiting(2).await;
            drop(held);
            other.await.unwrap().status
        }
        _ => {
            let status = other.await.unwrap().status;
            drop(held);
            status
        }
    };
    assert_eq!(status, if program == BEFORE { 201 } else { 409 });
    assert_eq!(one.await.unwrap().status, 201);
    let count = async |cents| {
        db.number(&format!("select count(*) from payment where cents = {cents}")).await
    };
    Payments {
        after_a_restart: count(1).await,
        on_two_instances: count(2).await,
        at_once: count(3).await,
    }
}

#[tokio::test]
async fn before_pays_twice() {
    let Payments { after_a_restart, on_two_instances, at_once } = payments_by(BEFORE).await;
    assert_eq!((after_a_restart, on_two_instances, at_once), (2, 2, 2));
}

#[tokio::test]
async fn after_pays_once() {
    let Payments { after_a_restart, on_two_instances, at_once } = payments_by(AFTER).await;
    assert_eq!((after_a_restart, on_two_instances, at_once), (1, 1, 1));
}

#[tokio::test]
async fn after_pays_once_under_kills() {
    storm::pays_once(AFTER, &Database::new(SCHEMA).await, &[]).await;
}

#[tokio::test]
async fn both_pays_once_under_kills_when_it_is_switched_on() {
    let db = Database::new(SCHEMA).await;
    db.pgonce(&["mode", "/payments", "optional"]).await;
    storm::pays_once(BOTH, &db, &[]).await;
}

#[tokio::test]
async fn the_switch_forgets_no_key_of_the_first_release() {
    let db = Database::new(SCHEMA).await;
    let service = Service::start(BOTH, &db, &[]).await;
    let first = service.pay("a", 1).await;
    assert_eq!(service.pay("a", 1).await, first, "by the cache");
    service.kill();
    let service = Service::start(BOTH, &db, &[]).await;
    assert_ne!(service.pay("a", 1).await, first, "observe keeps no work from running");
    assert_eq!(db.payments().await, 2);
    service.kill();

    db.pgonce(&["mode", "/payments", "optional"]).await;
    let service = Service::start(BOTH, &db, &[]).await;
    assert_eq!(service.pay("a", 1).await, first);
    let other = service.pay("b", 2).await;
    service.kill();

    let service = Service::start(AFTER, &db, &[]).await;
    assert_eq!(service.pay("a", 1).await, first);
    assert_eq!(service.pay("b", 2).await, other);
    assert_eq!(service.pay("b", 3).await.status, 422);
    let last = service.pay("c", 4).await;
    service.kill();

    let service = Service::start(BOTH, &db, &[]).await;
    assert_eq!(service.pay("c", 4).await, last, "the way back");
    assert_eq!(db.payments().await, 4);
}
