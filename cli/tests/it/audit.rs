//! The audit trail and the anomalies, as the program shows them.

use crate::commands::{pgonce, pgonce_with};
use crate::support::db::{TestDb, op};

#[tokio::test]
async fn the_trail_is_switched_on_shown_and_switched_off() {
    let db = TestDb::new().await;
    let off = pgonce(&db, &["audit", "test/scope", "k"]).await;
    assert_eq!(off.code, 3);
    assert!(off.stderr.contains("off: switch it on with"), "{}", off.stderr);
    let on = pgonce(&db, &["migrate", "--audit", "90"]).await;
    assert!(on.stdout.contains("kept for 90 days"), "{} {}", on.stdout, on.stderr);
    db.complete(&op("k"), "").await;
    let unknown = pgonce(&db, &["audit", "test/scope", "unknown"]).await;
    assert!(unknown.code == 3 && unknown.stderr.contains("no such key"), "{}", unknown.stderr);
    let doctor = pgonce(&db, &["doctor"]).await;
    assert!(doctor.stdout.contains("ok     the audit trail is on, and kept for 90 days"));
    let claim = db.lease(&op("leased"), std::time::Duration::from_secs(60)).await;
    let ann = [("PGOPTIONS", "-c pgonce.actor=ann")];
    let released = pgonce_with(&db, &["release", "test/scope", "leased", "--yes"], &ann).await;
    assert_eq!(released.code, 0, "{}", released.stderr);
    drop(claim);
    let shown = pgonce(&db, &["audit", "test/scope", "leased"]).await.stdout;
    let lines: Vec<Vec<&str>> =
        shown.lines().map(|line| line.split_whitespace().skip(1).take(4).collect()).collect();
    let expected = [
        ["ACTION", "ATTEMPT", "ROLE", "ACTOR"],
        ["begun", "1", "postgres", "-"],
        ["revoked", "1", "postgres", "ann"],
    ];
    assert_eq!(lines, expected, "{shown}");
    let json = pgonce(&db, &["audit", "test/scope", "leased", "--json", "--limit", "1"]).await;
    let json = json.json();
    assert_eq!((json.as_array().unwrap().len(), &json[0]["actor"]), (1, &"ann".into()));
    assert_eq!(pgonce(&db, &["audit", "test/scope", "k", "--limit", "0"]).await.code, 2);
    assert_eq!(pgonce(&db, &["migrate", "--audit", "367"]).await.code, 2);
    assert_eq!(pgonce(&db, &["migrate", "--audit", "9", "--no-audit"]).await.code, 2);
    let off = pgonce(&db, &["migrate", "--no-audit", "--json"]).await.json();
    assert!(off["audit_days_kept"].is_null() && off["to"] == 1, "{off}");
    let kept = pgonce(&db, &["audit", "test/scope", "k"]).await;
    assert!(kept.code == 0 && kept.stdout.contains("completed"), "the lines stay");
}

#[tokio::test]
async fn the_printed_sql_switches_the_trail_too() {
    let db = TestDb::new().await;
    for (flags, days) in [(&["--audit", "12"][..], Some(12)), (&["--no-audit"], None)] {
        let printed = pgonce(&db, &[&["migrate", "--print"], flags].concat()).await.stdout;
        sqlx::raw_sql(sqlx::AssertSqlSafe(printed)).execute(&mut db.conn().await).await.unwrap();
        let kept = db.once.audit_days_kept(&mut db.conn().await).await.unwrap();
        assert_eq!(kept, days);
    }
}

#[tokio::test]
async fn check_and_doctor_say_that_the_trail_is_incomplete() {
    let db = TestDb::new().await;
    db.once.audit_on(&mut db.conn().await, 30).await.unwrap();
    db.execute("alter table {}.idempotency_keys disable trigger audit_updated").await;
    for command in ["check", "doctor"] {
        let said = pgonce(&db, &[command]).await;
        let printed = said.stdout + &said.stderr;
        assert_eq!(said.code, 1, "{printed}");
        assert!(printed.contains("one of its triggers is disabled"), "{printed}");
    }
}

#[tokio::test]
async fn doctor_shows_what_looks_wrong_and_does_not_fail() {
    let db = TestDb::new().await;
    db.plant_overdue(3, 3600).await;
    let looked = pgonce(&db, &["doctor"]).await;
    assert_eq!(looked.code, 0, "{}", looked.stderr);
    let look = looked.stdout.lines().find(|line| line.starts_with("LOOK")).unwrap();
    assert!(look.contains("3 keys") && look.contains("Run a Reaper"), "{look}");
    let json = pgonce(&db, &["doctor", "--json"]).await.json();
    let look = json.as_array().unwrap().iter().find(|one| one["look"] == true).unwrap();
    assert_eq!((&look["check"], &look["ok"]), (&"late_reaper".into(), &true.into()));
}
