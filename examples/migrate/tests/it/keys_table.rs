//! From a table of keys, written before and after the work.

use crate::database::Database;
use crate::service::{Answer, Service};
use crate::storm;

const SCHEMA: &str = include_str!("../../keys-table/schema.sql");
const MOVE: &str = include_str!("../../keys-table/move.sql");
const BEFORE: &str = "keys-table-before";
const BOTH: &str = "keys-table-both";
const AFTER: &str = "keys-table-after";

/// Compares JSON as values, because `jsonb` keeps neither spaces nor the order of fields.
fn assert_same(one: &Answer, other: &Answer) {
    let [one, other] = [one, other].map(|it| (it.status, it.json(), it.content_type.clone()));
    assert_eq!(one, other);
}

/// Kills the old program between the payment's commit and the key's.
async fn killed_between_payment_and_key(db: &Database) {
    let service = Service::start(BEFORE, db, &[]).await;
    let held = db.hold_payments().await;
    let paying = service.paying("a", 1);
    db.until_waiting(1).await;
    let key = db.hold("select from idempotency_keys where key = 'a' for update").await;
    drop(held);
    db.until("select count(*) from payment", 1).await;
    service.kill();
    paying.abort();
    db.until_none_waits().await;
    drop(key);
}

#[tokio::test]
async fn before_pays_twice_when_killed_between_payment_and_key() {
    let db = Database::new(SCHEMA).await;
    killed_between_payment_and_key(&db).await;
    let service = Service::start(BEFORE, &db, &[]).await;
    assert_eq!(service.pay("a", 1).await.status, 409, "locked");
    db.execute("update idempotency_keys set locked_at = locked_at - interval '90 s'").await;
    assert_eq!(service.pay("a", 1).await.status, 201);
    assert_eq!(db.payments().await, 2);
}

#[tokio::test]
async fn before_pays_twice_when_the_work_outlasts_the_lock() {
    let db = Database::new(SCHEMA).await;
    let service = Service::start(BEFORE, &db, &[]).await;
    let held = db.hold_payments().await;
    let first = service.paying("a", 1);
    db.until_waiting(1).await;
    db.execute("update idempotency_keys set locked_at = locked_at - interval '90 s'").await;
    let second = service.paying("a", 1);
    db.until_waiting(2).await;
    drop(held);
    assert_eq!((first.await.unwrap().status, second.await.unwrap().status), (201, 201));
    assert_eq!(db.payments().await, 2);
}

#[tokio::test]
async fn both_and_after_pay_once_under_kills() {
    let db = Database::new(SCHEMA).await;
    storm::pays_once(BOTH, &db, &[]).await;
    storm::pays_once(AFTER, &Database::new(SCHEMA).await, &[]).await;
}

#[tokio::test]
async fn old_and_new_processes_share_the_old_table() {
    let db = Database::new(SCHEMA).await;
    let old = Service::start(BEFORE, &db, &[]).await;
    let new = Service::start(BOTH, &db, &[]).await;
    assert_same(&old.pay("a", 1).await, &new.pay("a", 1).await);
    assert_eq!(new.pay("a", 2).await.status, 422);
    assert_same(&new.pay("b", 1).await, &old.pay("b", 1).await);

    // At once, in both orders.
    let held = db.hold_payments().await;
    let first = old.paying("c", 1);
    db.until_waiting(1).await;
    assert_eq!(new.pay("c", 1).await.status, 409);
    drop(held);
    assert_same(&first.await.unwrap(), &new.pay("c", 1).await);
    let held = db.hold_payments().await;
    let first = new.paying("d", 1);
    db.until_waiting(1).await;
    let second = old.paying("d", 1);
    db.until_waiting(2).await;
    drop(held);
    assert_same(&first.await.unwrap(), &second.await.unwrap());
    assert_eq!(db.payments().await, 4);
}

#[tokio::test]
async fn moved_keys_are_answered_as_before() {
    let db = Database::new(SCHEMA).await;
    let old = Service::start(BEFORE, &db, &[]).await;
    let before = old.pay("a", 1).await;
    db.execute(
        "insert into idempotency_keys (user_id, key, request, created_at, response_code, response_body)
         values ('alice', 'forgotten', '{}', now() - interval '169 h', 201, '{}');
         insert into idempotency_keys (user_id, key, request, locked_at) values ('alice', 'running', '{}', now())",
    )
    .await;
    let move_rows = ["backfill", "--retention", "7d", "--from-query", MOVE];
    let counted = db.pgonce(&move_rows).await;
    assert!(counted.contains("nothing was written"), "{counted}");
    let both = Service::start(BOTH, &db, &[]).await;
    let known = both.pay("b", 1).await;
    let guide = include_str!("../../keys-table/README.md");
    assert_eq!(db.check_names(guide, MOVE).await, (1, 0));
    assert_eq!(db.check_names(guide, &MOVE.replace("/payments", "/pay")).await, (1, 1));
    let moved = db.pgonce(&[&move_rows[..], &["--apply", "--json"]].concat()).await;
    let moved: serde_json::Value = serde_json::from_str(&moved).unwrap();
    assert_eq!(moved["counts"]["inserted"], 1, "{moved}");
    assert_eq!((&moved["counts"]["known"], &moved["counts"]["expired"]), (&1.into(), &1.into()));

    let after = Service::start(AFTER, &db, &[]).await;
    assert_same(&after.pay("a", 1).await, &before);
    assert_eq!(after.pay("b", 1).await, known);
    assert!(db.pgonce(&["get", "alice/payments", "a"]).await.contains("completed"));
    let last = after.pay("c", 1).await;
    assert_eq!(both.pay("c", 1).await, last, "the way back");
    assert_eq!(db.payments().await, 3);

    let undone = db.pgonce(&[&move_rows[..], &["--undo"]].concat()).await;
    assert!(undone.contains("deleted"), "{undone}");
    assert_eq!(db.number("select count(*) from pgonce.keys").await, 2);
}

#[tokio::test]
async fn keys_that_the_old_program_left_locked_are_for_people() {
    let db = Database::new(SCHEMA).await;
    killed_between_payment_and_key(&db).await;
    db.execute("update idempotency_keys set locked_at = locked_at - interval '90 s'").await;
    let both = Service::start(BOTH, &db, &[]).await;
    assert_eq!(both.pay("a", 1).await.status, 409, "however old");
    // A person decides late, and by the guide.
    db.execute("update idempotency_keys set created_at = now() - interval '8 days'").await;
    let guide = include_str!("../../keys-table/README.md");
    let decide = guide.split("-- It was made").nth(1).unwrap().split("-- It was not made").next();
    let (_, decide) = decide.unwrap().split_once('\n').unwrap();
    db.execute(&decide.replace("'order-17'", "'a'").replace("17", "1").replace("1999", "1")).await;
    let move_rows = ["backfill", "--retention", "7d", "--apply", "--from-query", MOVE];
    db.pgonce(&move_rows).await;
    let after = Service::start(AFTER, &db, &[]).await;
    assert_eq!(after.pay("a", 1).await.status, 201);
    assert_eq!(both.pay("a", 1).await.status, 201);
    assert_eq!(db.payments().await, 1);
}
