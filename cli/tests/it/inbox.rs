//! `pgonce inbox` and `pgonce doctor`, as people and scripts use them.

use std::time::Duration;

use pgonce::{Inbox, Message, Policy, Verdict};
use sqlx::PgConnection;

use crate::commands::pgonce;
use crate::support::db::{TestDb, effect};

#[tokio::test]
async fn a_dead_message_is_redriven_from_a_shell() {
    let db = TestDb::new().await;
    let inbox = Inbox::new(&db.once, "orders")
        .unwrap()
        .policy(Policy::inbox().max_attempts(1).unwrap())
        .unwrap();
    let verdict = inbox.failed(&db.pool, "m", "no such product").await.unwrap();
    assert_eq!(verdict, Verdict::DeadLetter("no such product".to_owned()));
    let shown = pgonce(&db, &["get", "orders", "m"]).await;
    assert!(shown.stdout.contains("no such product"), "{}", shown.stdout);
    let redriven = pgonce(&db, &["inbox", "redrive", "orders", "m", "--json"]).await;
    assert_eq!((redriven.code, &redriven.json()["redriven"]), (0, &serde_json::json!(true)));
    let message = Message::new("m").redelivered(false);
    let work = async |tx: &mut PgConnection| effect(tx, &db.schema, "m").await;
    assert_eq!(inbox.handle(&db.pool, &message, work).await.verdict, Verdict::Ack);
    let done = pgonce(&db, &["inbox", "redrive", "orders", "m"]).await;
    assert_eq!((done.code, done.stderr.as_str()), (4, "pgonce: the message is done\n"));
    assert_eq!(pgonce(&db, &["inbox", "redrive", "orders", ""]).await.code, 2);
}

#[tokio::test]
async fn an_inbox_that_forgets_too_early_is_found() {
    let db = TestDb::new().await;
    let week = Duration::from_secs(7 * 86_400);
    let inbox = Inbox::new(&db.once, "orders")
        .unwrap()
        .policy(Policy::inbox().retention(week).unwrap())
        .unwrap();
    let _ = inbox.receive(&mut db.conn().await, "m").await.unwrap();
    let doctor = async |horizon: &str| pgonce(&db, &["doctor", "--horizon", horizon]).await;
    let short = doctor("orders=14d").await;
    assert_eq!(short.code, 1);
    assert!(
        short.stdout.ends_with(
            "ERROR  inbox orders: forgets messages after 7days, but the broker may redeliver for 14days. \
             A message could then take effect twice. Raise the retention in the inbox's Policy to at least 14days\n"
        ),
        "{}",
        short.stdout
    );
    for enough in ["orders=7d", "orders=36h", "unheard of=100d"] {
        assert_eq!(doctor(enough).await.code, 0, "{enough}");
    }
    for wrong in ["orders", "orders=", "orders=soon", "=1d"] {
        assert_eq!(doctor(wrong).await.code, 2, "{wrong}");
    }
    // The newest message counts, wherever its id sorts.
    let raised = Inbox::new(&db.once, "orders")
        .unwrap()
        .policy(Policy::inbox().retention(2 * week).unwrap())
        .unwrap();
    let _ = raised.receive(&mut db.conn().await, "a").await.unwrap();
    assert_eq!(doctor("orders=14d").await.code, 0);
    let _ = inbox.receive(&mut db.conn().await, "0").await.unwrap();
    let json = pgonce(&db, &["doctor", "--json", "--horizon", "orders=8d"]).await.json();
    let found = json.as_array().unwrap().iter().find(|one| one["check"] == "inbox").unwrap();
    assert_eq!((&json[0]["ok"], &found["ok"]), (&true.into(), &false.into()));
}
