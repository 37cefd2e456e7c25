//! Rollout modes and adoption, as the program shows them.

use std::time::Duration;

use pgonce::{Class, History, Rollout};

use crate::commands::{pgonce, pgonce_with};
use crate::support::db::{TestDb, effect, op};

#[tokio::test]
async fn a_mode_is_set_shown_and_followed_and_the_report_counts_it() {
    let mut db = TestDb::new().await;
    let none = pgonce(&db, &["mode"]).await;
    assert_eq!(none.stdout, "no class has a mode: services do what their code says\n");
    let none = pgonce(&db, &["mode", "payments"]).await;
    assert_eq!(none.stdout, "payments has had no mode: services do what their code says\n");
    let none = pgonce(&db, &["adoption"]).await;
    assert!(none.stdout.starts_with("no counts: "), "{}", none.stdout);
    let ann = [("PGOPTIONS", "-c pgonce.actor=ann")];
    let set = pgonce_with(&db, &["mode", "payments", "observe"], &ann).await;
    assert_eq!(set.code, 0, "{}", set.stderr);
    let (rollout, history) = (Rollout::new(), History::new(Duration::from_secs(3600)).unwrap());
    let class = Class::new("payments").unwrap();
    db.once = db.once.clone().class(class).rollout(&rollout).keep_history(&history);
    rollout.read(&db.once, &mut db.conn().await).await.unwrap();
    for _ in 0..3 {
        let op = op("order-17").value(500);
        db.once.run(&db.pool, &op, async |tx| effect(tx, &db.schema, "k").await).await.unwrap();
    }
    assert_eq!(db.effects().await, 3);
    history.flush(&db.once, &db.pool).await.unwrap();
    let report = pgonce(&db, &["adoption", "--last", "1s"]).await.stdout;
    let rows: Vec<Vec<&str>> =
        report.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(
        rows[1][..8],
        ["payments", "observe", "3", "100.0", "%", "0", "2", "1,000"],
        "{report}"
    );
    let json = pgonce(&db, &["adoption", "--json"]).await.json();
    assert_eq!((&json[0]["observed_duplicates"], &json[0]["mode"]), (&2.into(), &"observe".into()));
    for mode in ["required", "default"] {
        assert_eq!(pgonce(&db, &["mode", "payments", mode]).await.code, 0);
    }
    let shown = pgonce(&db, &["mode", "payments"]).await.stdout;
    let lines: Vec<Vec<&str>> =
        shown.lines().skip(1).map(|line| line.split_whitespace().skip(1).collect()).collect();
    let expected = [
        ["payments", "observe", "postgres", "ann"],
        ["payments", "required", "postgres", "-"],
        ["payments", "default", "postgres", "-"],
    ];
    assert_eq!(lines, expected, "{shown}");
    assert!(pgonce(&db, &["mode", "--json"]).await.json().as_array().unwrap().is_empty());
}

#[tokio::test]
async fn wrong_modes_and_classes_are_told_by_name() {
    let db = TestDb::new().await;
    for (arguments, says) in [
        (["mode", "payments", "on"], "mode takes off, observe, optional or required"),
        (["mode", "", "off"], "class is 0 bytes long; it takes 1 to 100 bytes"),
    ] {
        let told = pgonce(&db, &arguments).await;
        assert!(told.code == 2 && told.stderr.contains(says), "{} {}", told.code, told.stderr);
    }
    assert_eq!(pgonce(&db, &["adoption", "--last", "soon"]).await.code, 2);
}
