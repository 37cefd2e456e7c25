//! What `anomalies` finds, what it leaves alone, and what it reads.

use std::time::Duration;

use pgonce::{Anomaly, Reaper};
use sqlx::PgConnection;

use crate::support::db::{TestDb, lasting, op};
use crate::support::roles::{conn_as, with_roles};

const MINUTE: Duration = Duration::from_secs(60);

async fn found(db: &TestDb) -> Vec<Anomaly> {
    db.once.anomalies(&mut db.conn().await).await.unwrap()
}

/// Each anomaly with its scope, in order.
fn names(found: &[Anomaly]) -> Vec<(&str, &str)> {
    let mut names: Vec<_> = found
        .iter()
        .map(|one| (one.anomaly.as_str(), one.scope.as_deref().unwrap_or_default()))
        .collect();
    names.sort_unstable();
    names
}

/// Counts per minute in the last hour, and in the day before it.
async fn counted(db: &TestDb, scope: &str, now: [u32; 3], before: [u32; 3]) {
    for ([started, mismatch, duplicates], minutes) in [(now, "1, 59"), (before, "70, 1400")] {
        db.execute(&format!(
            "insert into {{}}.history select date_trunc('minute', {{}}._clock()) - n * interval '1 min', now(), {started},
                    0, 0, {mismatch}, 0, 0, 0, 0, 0, 0, 0, {duplicates}, 0, 0, 0, 0, 0, gen_random_uuid(), '{scope}', 'c'
               from generate_series({minutes}) n"
        ))
        .await;
    }
}

#[tokio::test]
async fn nothing_is_found_where_nothing_is_wrong() {
    let db = TestDb::new().await;
    assert!(found(&db).await.is_empty());
    db.complete(&op("k"), "").await;
    drop(db.lease(&op("leased"), MINUTE).await);
    db.plant_overdue(5, 60).await;
    assert!(found(&db).await.is_empty());
}

#[tokio::test]
async fn a_share_that_jumped_is_found_and_a_steady_or_small_one_is_not() {
    let db = TestDb::new().await;
    counted(&db, "mismatches", [90, 10, 0], [99, 1, 0]).await;
    counted(&db, "duplicates", [50, 0, 50], [90, 0, 10]).await;
    counted(&db, "steady", [50, 20, 30], [50, 20, 30]).await;
    counted(&db, "none before", [90, 10, 0], [0, 0, 0]).await;
    counted(&db, "few", [1, 1, 0], [1, 0, 0]).await;
    counted(&db, "", [50, 50, 50], [100, 0, 0]).await;
    db.execute(
        "delete from {}.history where scope = 'few' and minute < {}._clock() - interval '70 min'",
    )
    .await;
    let found = found(&db).await;
    assert_eq!(names(&found), [("duplicates", "duplicates"), ("mismatches", "mismatches")]);
    let mismatches = found.iter().find(|one| one.anomaly == "mismatches").unwrap();
    assert!(mismatches.saw.contains("590 of 5900 calls"), "{}", mismatches.saw);
    assert!(mismatches.saw.contains("(10.0 %)") && mismatches.saw.ends_with("1.0 %"));
    assert!(!mismatches.matters.is_empty() && !mismatches.remedy.is_empty());
    assert!(!format!("{:?}", found[0]).contains("scope:"));
    assert!(serde_json::to_string(&found).unwrap().contains("\"scope\":\"duplicates\""));
}

#[tokio::test]
async fn keys_that_count_are_found_and_random_ones_and_messages_are_not() {
    let db = TestDb::new().await;
    for (scope, key, count, fingerprint) in [
        ("numbers", "n::text", 5000, "decode(repeat('00', 36), 'hex')"),
        ("orders", "'order-' || n", 150, "decode(repeat('00', 36), 'hex')"),
        ("times", "(1790000000000 + n * 977)::text", 150, "decode(repeat('00', 36), 'hex')"),
        ("uuids", "gen_random_uuid()::text", 150, "decode(repeat('00', 36), 'hex')"),
        ("digests", "md5(n::text)", 150, "decode(repeat('00', 36), 'hex')"),
        ("messages", "n::text", 150, "null"),
        ("few", "n::text", 19, "decode(repeat('00', 36), 'hex')"),
    ] {
        db.execute(&format!(
            "insert into {{}}.idempotency_keys (created_at, expires_at, status, scope, key, fingerprint)
             select now(), now() + interval '1 day', 2, '{scope}', {key}, {fingerprint}
               from generate_series(1, {count}) n"
        ))
        .await;
    }
    let found = found(&db).await;
    let expected = ["numbers", "orders", "times"].map(|scope| ("guessable_keys", scope));
    assert_eq!(names(&found), expected);
    assert!(
        found[0].saw.starts_with("of 100 keys looked at, 100 are a number"),
        "{}",
        found[0].saw
    );
}

#[tokio::test]
async fn a_reaper_that_is_late_is_found_after_ten_minutes() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    db.plant_overdue(1, 0).await; // since one second
    db.advance(10 * MINUTE - Duration::from_secs(2)).await;
    assert!(found(&db).await.is_empty());
    db.advance(MINUTE).await;
    let late = found(&db).await;
    assert_eq!(names(&late), [("late_reaper", "")]);
    assert!(late[0].saw.starts_with("1 keys") && late[0].saw.ends_with("for 10 minutes"));
    db.plant_overdue(10_100, 1).await;
    assert!(found(&db).await[0].saw.starts_with("more than 10000 keys"));
    Reaper::new(&db.once).pass(&mut db.conn().await).await.unwrap();
    assert!(found(&db).await.is_empty());
}

#[tokio::test]
async fn a_scope_that_holds_nearly_all_leased_keys_is_found() {
    let db = TestDb::new().await;
    db.execute(
        "insert into {}.unfinished (try_at, scope, key) select now(), 'greedy', n::text from generate_series(1, 100) n;
         insert into {}.unfinished (try_at, scope, key) select now(), 'other', n::text from generate_series(1, 25) n",
    )
    .await;
    assert!(found(&db).await.is_empty(), "there are no other clients");
    for scope in ["greedy", "other", "third"] {
        let op = pgonce::Operation::new(scope, "k").unwrap();
        let _ = db.once.begin_leased(&db.pool, &op, lasting(MINUTE)).await.unwrap();
    }
    db.execute("delete from {}.unfinished where key = 'k'").await;
    let greedy = found(&db).await;
    assert_eq!(names(&greedy), [("greedy_scope", "greedy")]);
    assert!(greedy[0].saw.starts_with("100 of 125 leased keys"), "{}", greedy[0].saw);
    db.execute(
        "insert into {}.unfinished (try_at, scope, key) values (now(), 'other', 'one more')",
    )
    .await;
    assert!(found(&db).await.is_empty());
}

#[tokio::test]
async fn each_role_is_told_what_it_may_read() {
    let db = with_roles().await;
    db.plant_overdue(2, 3600).await;
    counted(&db, "s", [50, 0, 50], [90, 0, 10]).await;
    for (role, expected) in [
        ("app", vec![("duplicates", "s"), ("late_reaper", "")]),
        ("auditor", vec![("duplicates", "s"), ("late_reaper", "")]),
        ("reaper", vec![("duplicates", "s")]),
    ] {
        let mut conn: PgConnection = conn_as(&db, role).await;
        let found = db.once.anomalies(&mut conn).await.unwrap();
        assert_eq!(names(&found), expected, "{role}");
    }
}

// A plan from statistics of a small table must not read a large one.
#[tokio::test]
async fn the_keys_are_never_read_from_end_to_end() {
    let db = with_roles().await;
    let plant = |from: u32, to: u32| {
        format!(
            "insert into {{}}.idempotency_keys (created_at, expires_at, status, scope, key, fingerprint)
             select now(), now() + interval '1 day', 2, 'scope ' || n % 3, gen_random_uuid()::text,
                    decode(repeat('00', 36), 'hex')
               from generate_series({from}, {to}) n"
        )
    };
    db.execute("alter table {}.idempotency_keys set (autovacuum_enabled = off)").await;
    db.execute(&plant(1, 30)).await;
    db.execute("analyze {}.idempotency_keys").await;
    for role in ["app", "auditor"] {
        let mut conn = conn_as(&db, role).await;
        db.once.anomalies(&mut conn).await.unwrap();
        let few = reads(&db, &mut conn).await;
        db.execute(&plant(31, 200_000)).await;
        db.once.anomalies(&mut conn).await.unwrap();
        let many = reads(&db, &mut conn).await;
        assert_eq!((few.0, many.0), (0, 0), "{role}: scans of the table");
        assert!(many.1 < 2000, "{role}: {} rows", many.1);
        db.execute("delete from {}.idempotency_keys where created_at < now()").await;
        db.execute(&plant(1, 30)).await;
    }
}

/// This session's scans of the whole table, and the rows that it has read, in one more call.
async fn reads(db: &TestDb, conn: &mut PgConnection) -> (i64, i64) {
    use sqlx::Connection;
    let mut tx = conn.begin().await.unwrap();
    db.once.anomalies(&mut tx).await.unwrap();
    let counted = "select coalesce(sum(seq_scan), 0)::bigint, coalesce(sum(seq_tup_read + idx_tup_fetch), 0)::bigint
                     from pg_stat_xact_user_tables where relid = '{}.idempotency_keys'::regclass";
    let counted = sqlx::query_as(db.sql(counted)).fetch_one(&mut *tx).await.unwrap();
    tx.rollback().await.unwrap();
    counted
}
