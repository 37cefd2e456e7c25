//! From a table of keys and responses, in the work's transaction.

use crate::database::Database;
use crate::service::{Answer, Service};
use crate::storm;

const SCHEMA: &str = include_str!("../../zero-to-production/schema.sql");
const MOVE: &str = include_str!("../../zero-to-production/move.sql");
const BEFORE: &str = "zero-to-production-before";
const BOTH: &str = "zero-to-production-both";
const AFTER: &str = "zero-to-production-after";

#[tokio::test]
async fn all_three_pay_once_under_kills() {
    for program in [BEFORE, BOTH, AFTER] {
        storm::pays_once(program, &Database::new(SCHEMA).await, &[]).await;
    }
}

#[tokio::test]
async fn before_answers_another_request_with_the_first_response() {
    let db = Database::new(SCHEMA).await;
    let service = Service::start(BEFORE, &db, &[]).await;
    let first = service.pay("a", 1).await;
    assert_eq!(service.pay("a", 99).await, first);
}

#[tokio::test]
async fn after_refuses_another_request() {
    let db = Database::new(SCHEMA).await;
    let service = Service::start(AFTER, &db, &[]).await;
    assert_eq!(service.pay("a", 1).await.status, 201);
    assert_eq!(service.pay("a", 99).await.status, 422);
}

/// Twelve requests with one key meet, in a service with five connections. Returns the answers, and the answer to another
/// user's request that comes meanwhile.
async fn twelve_at_once(program: &str) -> (Vec<Answer>, Answer) {
    let db = Database::new(SCHEMA).await;
    let service = Service::start(program, &db, &[]).await;
    let held = db.hold_payments().await;
    let mut paying = vec![service.paying("a", 1)];
    db.until_waiting(1).await;
    paying.extend((0..11).map(|_| service.paying("a", 1)));
    if program == BEFORE {
        db.until_waiting(5).await; // one for the table, four for the key: all connections
    }
    let bob = tokio::spawn({
        let client = service.client.clone();
        async move { client.pay("bob", "b", 2).await.unwrap() }
    });
    if program == BEFORE {
        assert_eq!(bob.await.unwrap().status, 500, "no connection is left");
        drop(held);
        let bob = service.client.pay("bob", "b", 2).await.unwrap();
        return (answers(paying).await, bob);
    }
    db.until(
        "select count(*) from pg_stat_activity where wait_event = 'relation'
               and datname = current_database()",
        2,
    )
    .await;
    drop(held);
    let answers = answers(paying).await;
    assert_eq!(db.payments().await, 2);
    (answers, bob.await.unwrap())
}

async fn answers(paying: Vec<tokio::task::JoinHandle<Answer>>) -> Vec<Answer> {
    let mut answers = Vec::new();
    for one in paying {
        answers.push(one.await.unwrap());
    }
    answers
}

#[tokio::test]
async fn before_duplicates_at_once_take_all_connections() {
    let (answers, _) = twelve_at_once(BEFORE).await;
    let failed = answers.iter().filter(|answer| answer.status == 500).count();
    assert!(failed >= 7, "no connection for {failed} of 12");
}

#[tokio::test]
async fn after_duplicates_at_once_leave_connections_to_others() {
    let (answers, bob) = twelve_at_once(AFTER).await;
    assert_eq!(bob.status, 201);
    let first = &answers[0];
    assert_eq!(first.status, 201);
    assert!(answers.iter().all(|answer| answer == first || answer.status == 409), "{answers:?}");
}

#[tokio::test]
async fn old_and_new_processes_share_the_old_table() {
    let db = Database::new(SCHEMA).await;
    let old = Service::start(BEFORE, &db, &[]).await;
    let new = Service::start(BOTH, &db, &[]).await;
    let a = old.pay("a", 1).await;
    assert_eq!(new.pay("a", 1).await, a);
    let b = new.pay("b", 1).await;
    assert_eq!(old.pay("b", 1).await, b);
    for (first, second) in [(&old, &new), (&new, &old)] {
        let key = db.payments().await.to_string();
        let held = db.hold_payments().await;
        let paying = first.paying(&key, 1);
        db.until_waiting(1).await;
        let again = second.paying(&key, 1);
        db.until_waiting(2).await;
        drop(held);
        assert_eq!(paying.await.unwrap(), again.await.unwrap());
    }
    assert_eq!(db.payments().await, 4);
}

#[tokio::test]
async fn moved_keys_are_answered_as_before() {
    let db = Database::new(SCHEMA).await;
    let old = Service::start(BEFORE, &db, &[]).await;
    let before = old.pay("a", 1).await;
    assert!(before.location.is_some());
    let both = Service::start(BOTH, &db, &[]).await;
    let known = both.pay("b", 1).await;
    let guide = include_str!("../../zero-to-production/README.md");
    assert_eq!(db.check_names(guide, MOVE).await, (1, 0));
    let move_rows = ["backfill", "--retention", "7d", "--apply", "--json", "--from-query", MOVE];
    let moved: serde_json::Value = serde_json::from_str(&db.pgonce(&move_rows).await).unwrap();
    assert_eq!((&moved["counts"]["inserted"], &moved["counts"]["known"]), (&1.into(), &1.into()));
    let after = Service::start(AFTER, &db, &[]).await;
    assert_eq!(after.pay("a", 1).await, before);
    assert_eq!(after.pay("b", 1).await, known);
    let last = after.pay("c", 1).await;
    assert_eq!(both.pay("c", 1).await, last, "the way back");
    assert_eq!(db.payments().await, 3);
}
