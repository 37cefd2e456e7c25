//! The audit trail is switched on and off, and kept by day.

use std::time::Duration;

use pgonce::{ErrorKind, Reaper, Response};
use sqlx::Connection;

use crate::audit::audited;
use crate::support::db::{PATIENCE, TestDb, op, started};

const DAY: Duration = Duration::from_secs(86_400);

async fn partitions(db: &TestDb) -> Vec<String> {
    db.ask(
        "select array_agg(c.relname::text order by 1) from pg_inherits i join pg_class c on c.oid = i.inhrelid
          where i.inhparent = '{}.audit'::regclass and c.relname <> 'audit_default'",
    )
    .await
}

/// The partition's name of so many days from the clock's today.
async fn day(db: &TestDb, days: i32) -> String {
    db.ask(&format!(
        "select 'audit_' || to_char(({{}}._clock() at time zone 'UTC')::date + {days}, 'YYYYMMDD')"
    ))
    .await
}

async fn reap(db: &TestDb) {
    Reaper::new(&db.once).pass(&mut db.conn().await).await.unwrap();
}

async fn problem(db: &TestDb) -> Option<String> {
    match db.once.check(&db.pool).await {
        Ok(()) => None,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Environment);
            Some(error.to_string())
        }
    }
}

#[tokio::test]
async fn it_is_switched_on_changed_and_off() {
    let db = TestDb::new().await;
    let mut conn = db.conn().await;
    assert_eq!(db.once.audit_days_kept(&mut conn).await.unwrap(), None);
    db.once.audit_off(&mut conn).await.unwrap();
    for days in [30, 30, 7] {
        db.once.audit_on(&mut conn, days).await.unwrap();
        assert_eq!(db.once.audit_days_kept(&mut conn).await.unwrap(), Some(days));
        assert_eq!(problem(&db).await, None);
    }
    db.complete(&op("k"), "").await;
    db.once.audit_off(&mut conn).await.unwrap();
    assert_eq!(db.once.audit_days_kept(&mut conn).await.unwrap(), None);
    db.complete(&op("silent"), "").await;
    assert_eq!(db.ask::<i64>("select count(*) from {}.audit").await, 2, "the lines stay");
}

#[tokio::test]
async fn switched_on_again_it_takes_no_lock() {
    let db = audited().await;
    let mut holder = db.pool.begin().await.unwrap();
    drop(started(db.once.begin(&mut holder, &op("k")).await.unwrap()));
    let on = async { db.once.audit_on(&mut db.conn().await, 30).await };
    tokio::time::timeout(PATIENCE, on).await.unwrap().unwrap();
    let error = db.once.audit_on(&mut db.conn().await, 31).await.unwrap_err();
    assert_eq!(error.sqlstate().as_deref(), Some("55P03"), "but a change waits only for a while");
    assert!(error.is_retryable());
}

#[tokio::test]
async fn check_says_when_a_trigger_is_disabled_or_gone_and_switching_on_mends_it() {
    let db = audited().await;
    for damage in [
        "alter table {}.idempotency_keys disable trigger audit_inserted",
        "alter table {}.idempotency_keys disable trigger audit_deleted",
        "alter table {}.idempotency_keys enable replica trigger audit_truncated",
        "drop trigger audit_renamed on {}.idempotency_keys",
        "drop trigger audit_updated on {}.idempotency_keys",
        "drop trigger audit_refused on {}.audit",
        "alter table {}.audit disable trigger audit_refused",
    ] {
        db.execute(damage).await;
        let problem = problem(&db).await.expect(damage);
        let cure = problem.split("run ").nth(1).unwrap();
        assert!(problem.contains("trigger") && cure.contains("audit_on(30)"), "{problem}");
        db.execute(cure).await;
        assert_eq!(self::problem(&db).await, None, "{damage}");
    }
}

#[tokio::test]
async fn the_next_days_have_their_partitions_and_a_reaper_makes_them() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    db.once.audit_on(&mut db.conn().await, 2).await.unwrap();
    let (first, last) = (day(&db, 0).await, day(&db, 7).await);
    let made = partitions(&db).await;
    assert_eq!((made.len(), &made[0], &made[7]), (8, &first, &last));
    db.advance(6 * DAY).await;
    assert_eq!(problem(&db).await, None);
    db.advance(DAY).await;
    let problem_found = problem(&db).await.unwrap();
    assert!(problem_found.contains("no partition for today or tomorrow"), "{problem_found}");
    reap(&db).await;
    assert_eq!(problem(&db).await, None);
    let made = partitions(&db).await;
    assert_eq!(made.first(), Some(&day(&db, -2).await), "two whole days are kept");
    assert_eq!((made.len(), made.last()), (10, Some(&day(&db, 7).await)));
}

#[tokio::test]
async fn lines_of_days_that_are_over_go_and_others_stay() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    db.once.audit_on(&mut db.conn().await, 1).await.unwrap();
    for key in ["old", "kept", "new"] {
        drop(started(db.once.begin(&mut db.conn().await, &op(key)).await.unwrap()));
        db.advance(DAY).await;
    }
    reap(&db).await;
    let left = "select string_agg(key, ' ' order by id) from {}.audit where action = 'begun'";
    assert_eq!(db.ask::<String>(left).await, "new", "of yesterday; today has none");
}

#[tokio::test]
async fn without_a_reaper_lines_go_to_the_default_partition_and_no_call_fails() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    db.once.audit_on(&mut db.conn().await, 3).await.unwrap();
    db.advance(20 * DAY).await;
    db.complete(&op("late"), "").await;
    let in_default = "select count(*) from {}.audit_default";
    assert_eq!(db.ask::<i64>(in_default).await, 2);
    reap(&db).await;
    db.complete(&op("later"), "").await;
    assert_eq!(db.ask::<i64>(in_default).await, 4, "today's lines stay together");
    assert!(partitions(&db).await.contains(&day(&db, 1).await), "tomorrow is there");
    db.advance(DAY).await;
    reap(&db).await;
    assert_eq!(problem(&db).await, None);
    db.advance(2 * DAY).await;
    reap(&db).await;
    assert_eq!(db.ask::<i64>(in_default).await, 4, "kept as long as the others");
    db.advance(DAY).await;
    reap(&db).await;
    assert_eq!(db.ask::<i64>(in_default).await, 0);
}

#[tokio::test]
async fn days_are_dropped_while_transactions_write() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    db.once.audit_on(&mut db.conn().await, 1).await.unwrap();
    db.complete(&op("old"), "").await;
    let old = day(&db, 0).await;
    db.advance(2 * DAY).await;
    // It has written lines, and so has a lock of the trail.
    let mut writer = db.pool.begin().await.unwrap();
    let claim = started(db.once.begin(&mut writer, &op("k")).await.unwrap());
    tokio::time::timeout(PATIENCE, reap(&db)).await.unwrap();
    assert!(partitions(&db).await.contains(&old), "the table's drop waits");
    let size = format!("select pg_relation_size('{{}}.{old}')");
    assert_eq!(db.ask::<i64>(&size).await, 0, "but its lines are gone");
    // Meanwhile others write.
    let other = async { db.complete(&op("other"), "").await };
    tokio::time::timeout(PATIENCE, other).await.unwrap();
    claim.complete(&mut writer, Response::empty()).await.unwrap();
    writer.commit().await.unwrap();
    reap(&db).await;
    assert!(!partitions(&db).await.contains(&old));
}

#[tokio::test]
async fn a_day_is_made_while_transactions_write() {
    let db = audited().await;
    db.execute(&format!("drop table {{}}.{}", day(&db, 7).await)).await;
    let mut writer = db.pool.begin().await.unwrap();
    drop(started(db.once.begin(&mut writer, &op("k")).await.unwrap()));
    reap(&db).await;
    assert!(partitions(&db).await.contains(&day(&db, 7).await));
    writer.rollback().await.unwrap();
}

#[tokio::test]
async fn a_day_begins_at_midnight_in_utc_whatever_the_session_says() {
    let db = TestDb::new().await;
    let options =
        db.options.clone().options([("timezone", "Asia/Kolkata"), ("datestyle", "German")]);
    let mut conn = sqlx::PgConnection::connect_with(&options).await.unwrap();
    db.once.audit_on(&mut conn, 30).await.unwrap();
    let today = day(&db, 0).await;
    let bound =
        "select pg_get_expr(relpartbound, oid) from pg_class where oid = '{}.TODAY'::regclass";
    let bound: String = sqlx::query_scalar(db.sql(&bound.replace("TODAY", &today)))
        .fetch_one(&mut {
            let utc = db.options.clone().options([("timezone", "UTC")]);
            sqlx::PgConnection::connect_with(&utc).await.unwrap()
        })
        .await
        .unwrap();
    assert_eq!(bound.matches(" 00:00:00+00").count(), 2, "{bound}");
}

// A schema that is migrated again, renamed or dumped keeps its trail.
#[tokio::test]
async fn a_migration_keeps_the_trail_on() {
    let db = audited().await;
    db.execute(
        "create or replace function {}.schema_version(out version integer, out serves_from integer, out digest text)
           language sql as $$ select 1, 1, 'older' $$",
    )
    .await;
    assert!(db.once.migrate(&mut db.conn().await).await.unwrap().functions_replaced);
    assert_eq!(problem(&db).await, None);
    db.complete(&op("k"), "").await;
    assert_eq!(db.ask::<i64>("select count(*) from {}.audit").await, 2);
}
