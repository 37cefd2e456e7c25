//! The reaper deletes keys past their retention, and nothing else.

use std::time::Duration;

use pgonce::{Reaper, Response};
use sqlx::{Connection, PgConnection};
use tokio::sync::oneshot;

use crate::support::db::{PATIENCE, TestDb, kept_for, op};

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);

#[tokio::test]
async fn a_batch_deletes_the_oldest_and_reports_the_rest() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    db.plant_overdue(10, 100).await;
    let mut conn = db.conn().await;
    let reaped = db.once.reap_once(&mut conn, 4).await.unwrap();
    assert_eq!((reaped.deleted, reaped.backlog, reaped.cut_short), (4, 6, true));
    assert_eq!(reaped.oldest_overdue, Some(Duration::from_secs(106)));
    let reaped = db.once.reap_once(&mut conn, 100).await.unwrap();
    assert_eq!((reaped.deleted, reaped.backlog, reaped.oldest_overdue), (6, 0, None));
    assert!(!reaped.cut_short);
}

#[tokio::test]
async fn only_keys_past_their_retention_and_without_a_live_lease_go() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    let mut conn = db.conn().await;
    drop(db.lease(&op("lapsed, forgotten"), MINUTE).await);
    db.lease(&op("released, forgotten"), MINUTE).await.release(&mut conn).await.unwrap();
    drop(db.lease(&op("live past its retention"), MINUTE).await);
    db.complete(&op("completed, forgotten"), "").await;
    db.complete(&op("completed, remembered").policy(kept_for(2 * DAY)), "").await;
    drop(db.lease(&op("lapsed, remembered").policy(kept_for(2 * DAY)), MINUTE).await);
    db.advance(DAY - MINUTE).await;
    drop(db.lease(&op("live past its retention"), 2 * MINUTE).await);
    db.advance(MINUTE).await;
    let reaped = Reaper::new(&db.once).pass(&mut conn).await.unwrap();
    assert_eq!((reaped.deleted, reaped.backlog), (3, 0));
    let left: String = db.ask("select string_agg(key, '; ' order by key) from {}.keys").await;
    assert_eq!(left, "completed, remembered; lapsed, remembered; live past its retention");
    // The holder of the live lease can still finish; then its key is deleted too.
    db.advance(MINUTE).await;
    assert_eq!(db.once.reap_once(&mut conn, 100).await.unwrap().deleted, 1);
}

#[tokio::test]
async fn a_full_batch_of_live_leases_in_front_does_not_starve_the_rest() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    db.plant_overdue(5, 1000).await;
    db.execute(
        "update {}.idempotency_keys set status = 1, completed_at = null,
           lease_expires_at = {}._clock() + interval '1 hour'",
    )
    .await;
    db.plant_overdue(5, 0).await;
    let mut conn = db.conn().await;
    assert_eq!(db.once.reap_once(&mut conn, 5).await.unwrap().deleted, 5);
    let left: i64 = db.ask("select count(*) from {}.keys where claim = 'live'").await;
    assert_eq!(left, 5);
}

#[tokio::test]
async fn reapers_work_side_by_side_on_different_keys() {
    let db = TestDb::new().await;
    db.plant_overdue(100, 0).await;
    let mut first = db.conn().await;
    let mut tx = first.begin().await.unwrap();
    let batch = db.sql("select deleted from {}._reap_batch(60, null)");
    assert_eq!(sqlx::query_scalar::<_, i64>(batch).fetch_one(&mut *tx).await.unwrap(), 60);
    // The first has not committed; the second takes the rest without waiting.
    let mut second = db.conn().await;
    assert_eq!(db.once.reap_once(&mut second, 60).await.unwrap().deleted, 40);
    tx.commit().await.unwrap();
    let left: i64 = db.ask("select count(*) from {}.keys").await;
    assert_eq!(left, 0);
}

#[tokio::test]
async fn a_key_that_is_begun_again_while_the_reaper_waits_is_kept() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    db.complete(&op("k"), "old").await;
    db.advance(DAY).await;
    let mut holder = db.pool.begin().await.unwrap();
    let claim = crate::support::db::started(db.once.begin(&mut holder, &op("k")).await.unwrap());
    let mut conn = db.conn().await;
    assert_eq!(
        db.once.reap_once(&mut conn, 10).await.unwrap().deleted,
        0,
        "locked rows are skipped"
    );
    claim.complete(&mut holder, Response::bytes("new")).await.unwrap();
    holder.commit().await.unwrap();
    assert_eq!(db.once.reap_once(&mut conn, 10).await.unwrap().deleted, 0);
}

#[tokio::test]
async fn with_an_old_snapshot_open_a_batch_does_not_read_what_earlier_ones_deleted() {
    let db = TestDb::new().await;
    db.plant_overdue(4000, 0).await;
    let mut old = db.conn().await;
    let mut snapshot = old.begin_with("begin isolation level repeatable read").await.unwrap();
    sqlx::query("select 1").execute(&mut *snapshot).await.unwrap();
    let mut conn = db.conn().await;
    // What the last batch of a pass reads, with and without the watermark of the previous batch.
    let mut watermark: Option<i64> = None;
    for _ in 0..39 {
        let (next, deleted): (Option<i64>, i64) =
            sqlx::query_as(db.sql("call {}.reap(100, 1, $1)"))
                .bind(watermark)
                .fetch_one(&mut conn)
                .await
                .unwrap();
        assert_eq!(deleted, 100);
        watermark = next;
    }
    let with = reads_of_a_batch(&db, 100, watermark).await;
    let without = reads_of_a_batch(&db, 100, None).await;
    assert!(with * 5 < without, "index entries read: {with} with the watermark, {without} without");
    drop(snapshot);
}

#[tokio::test]
async fn a_batch_reads_no_more_than_it_deletes_whatever_the_statistics_say() {
    let db = TestDb::new().await;
    // When the table was analyzed, it had few keys, a twentieth of them overdue. Now it has many, most of them overdue
    // and in no order.
    let plant = |count: u32, at: &str| {
        format!(
            "insert into {{}}.idempotency_keys (created_at, expires_at, lease_expires_at, completed_at, attempt,
                                              status, scope, key)
             select at - interval '1 day', at, at, at, 1, 2, 'planted', at::text || n
               from generate_series(1, {count}) n,
                    lateral (select {{}}._clock() + {at} as at) t"
        )
    };
    db.execute(&plant(3000, "(n * 7919 % 10007 - 500) * interval '10 s'")).await;
    db.execute("analyze {}.idempotency_keys").await;
    db.execute(&plant(6000, "(n * 7919 % 10007 - 10007) * interval '0.5 s'")).await;
    let read = reads_of_a_batch(&db, 300, None).await;
    assert!((300..400).contains(&read), "read {read} to delete 300");
}

#[tokio::test]
async fn a_pass_reads_what_it_deletes_once() {
    let db = TestDb::new().await;
    db.plant_overdue(7000, 0).await;
    let mut conn = db.conn().await;
    // Inside a transaction, deleted rows cannot be cleaned up meanwhile.
    let mut tx = conn.begin().await.unwrap();
    let before = reads(&db, &mut tx).await;
    let (mut total, mut watermark) = (0, None::<i64>);
    while total < 7000 {
        let batch = db.sql("select watermark, deleted from {}._reap_batch(1000, $1)");
        let (next, deleted): (Option<i64>, i64) =
            sqlx::query_as(batch).bind(watermark).fetch_one(&mut *tx).await.unwrap();
        total += deleted;
        watermark = next;
    }
    sqlx::query(db.sql("select {}.reap_backlog()")).execute(&mut *tx).await.unwrap();
    let read = reads(&db, &mut tx).await - before;
    assert_eq!(total, 7000);
    // Twice: the query for the backlog reads the rows again.
    assert!((14_000..15_000).contains(&read), "read {read} to delete 7000");
}

async fn reads_of_a_batch(db: &TestDb, rows: i32, watermark: Option<i64>) -> i64 {
    let mut conn = db.conn().await;
    let mut tx = conn.begin().await.unwrap();
    let before = reads(db, &mut tx).await;
    sqlx::query(db.sql("select {}._reap_batch($1, $2)"))
        .bind(rows)
        .bind(watermark)
        .execute(&mut *tx)
        .await
        .unwrap();
    let after = reads(db, &mut tx).await;
    tx.rollback().await.unwrap();
    after - before
}

/// How many entries of the expiry index, and how many rows by sequential scans, this session has read.
async fn reads(db: &TestDb, conn: &mut PgConnection) -> i64 {
    let read = "select sum(pg_stat_get_xact_tuples_returned(of::regclass))::bigint
           from unnest('{{}.idempotency_keys, {}.idempotency_keys_expires_at}'::text[]) of";
    sqlx::query_scalar(db.sql(read)).fetch_one(conn).await.unwrap()
}

#[tokio::test]
async fn between_its_batches_a_reaper_leaves_the_database_its_share() {
    let db = TestDb::new().await;
    db.plant_overdue(1200, 0).await;
    // Every batch reads the clock once, and so takes a tenth of a second.
    db.execute(
        "create or replace function {}._clock() returns timestamptz language plpgsql volatile
           as 'begin perform pg_sleep(0.1); return clock_timestamp(); end'",
    )
    .await;
    let mut conn = db.conn().await;
    let reaped = Reaper::new(&db.once).share(0.1).unwrap().pass(&mut conn).await.unwrap();
    assert_eq!((reaped.deleted, reaped.cut_short), (1200, false));
    let least = Duration::from_millis(100 + 900 + 100);
    assert!(reaped.took >= least, "two batches and a pause took {:?}", reaped.took);
}

#[tokio::test]
async fn the_background_reaper_empties_the_backlog_and_stops_when_told() {
    let db = TestDb::new().await;
    db.plant_overdue(25_000, 0).await;
    let (stop, stopped) = oneshot::channel::<()>();
    let reaper = Reaper::new(&db.once).interval(Duration::from_millis(1)).unwrap();
    let task = tokio::spawn({
        let pool = db.pool.clone();
        async move { reaper.run_until(pool, stopped).await }
    });
    db.until("select count(*) = 0 from {}.keys").await;
    drop(stop);
    let total = tokio::time::timeout(PATIENCE, task).await.unwrap().unwrap();
    assert_eq!(total, 25_000);
}

#[tokio::test]
async fn the_background_reaper_survives_errors() {
    let db = TestDb::new().await;
    db.plant_overdue(3, 0).await;
    db.execute("alter table {}.idempotency_keys rename to hidden").await;
    let (stop, stopped) = oneshot::channel::<()>();
    let reaper = Reaper::new(&db.once).interval(Duration::from_millis(1)).unwrap();
    let task = tokio::spawn({
        let pool = db.pool.clone();
        async move { reaper.run_until(pool, stopped).await }
    });
    // It has failed at least once: its session exists, but not the table.
    db.until(
        "select count(*) > 0 from pg_stat_activity
          where application_name = '{}' and query like '%reap(%' and pid <> pg_backend_pid()",
    )
    .await;
    db.execute("alter table {}.hidden rename to idempotency_keys").await;
    db.until("select count(*) = 0 from {}.idempotency_keys").await;
    drop(stop);
    assert_eq!(tokio::time::timeout(PATIENCE, task).await.unwrap().unwrap(), 3);
}
