//! A session that planned its statements for a small table does not scan the whole table when it has grown.

use sqlx::{Connection, PgConnection};

use crate::support::db::TestDb;

const FEW: u32 = 30;
const MANY: u32 = 300_000;

/// Every way to find a key, each in its own session.
const WAYS: [&str; 12] = [
    "select answer from {}.begin_operation('s', 'new')",
    "select answer from {}.begin_operation('s', 'k1')",
    "call {}.begin_leased('s', 'k1', gen_random_uuid(), 60000)",
    "select {}.complete('s', 'k1', gen_random_uuid())", // the claim is lost, after the look
    "select {}.release('s', 'k1', gen_random_uuid())",
    "select {}.record_step('s', 'k1', gen_random_uuid(), 'a', null, '')",
    "select {}.recorded_steps('s', 'k1', gen_random_uuid())",
    "call {}.extend_leases(array['s'], array['k1'], array[gen_random_uuid()], array[1000])",
    "select answer from {}.receive('s', array['k1', 'new'])",
    "select status from {}.message_status('s', 'k1')",
    "select status from {}.inspect_key('s', 'k1')",
    "select status from {}.operation_status('s', 'k1')",
];

async fn grow(db: &TestDb, count: u32) {
    db.execute(&format!(
        "insert into {{}}.idempotency_keys (created_at, expires_at, status, scope, key)
         select now(), now() + interval '1 day', 2, 's', 'k' || n from generate_series(1, {count}) n
         on conflict do nothing"
    ))
    .await;
}

/// This session's scans of the whole table since it last reported its counts, which it does once a second.
async fn scans(conn: &mut PgConnection) -> i64 {
    let scans = "select coalesce(sum(seq_scan), 0)::bigint from pg_stat_xact_user_tables
                  where schemaname = 'alone' and relname = 'idempotency_keys'";
    sqlx::query_scalar(scans).fetch_one(conn).await.unwrap()
}

/// Calls, rolls back, and returns whether the whole table was read.
async fn reads_all(db: &TestDb, conn: &mut PgConnection, way: &str) -> bool {
    let before = scans(conn).await;
    let call = sqlx::query(db.sql(way));
    if way.starts_with("call") {
        call.execute(&mut *conn).await.unwrap();
    } else {
        let mut tx = conn.begin().await.unwrap();
        if let Err(error) = call.execute(&mut *tx).await {
            let sqlstate = error.as_database_error().and_then(|error| error.code());
            assert_eq!(sqlstate.as_deref(), Some("IK002"), "{way}: {error}");
        }
        tx.rollback().await.unwrap();
    }
    scans(conn).await > before
}

#[tokio::test]
async fn a_plan_for_a_small_table_does_not_outlive_it() {
    let db = TestDb::alone().await;
    // Autovacuum would repair a plan after a minute.
    db.execute("alter table {}.idempotency_keys set (autovacuum_enabled = off)").await;
    grow(&db, FEW).await;
    db.execute("vacuum analyze {}.idempotency_keys").await;
    let mut sessions = Vec::new();
    let mut read_all = 0;
    for way in WAYS {
        let mut conn = db.conn().await;
        for _ in 0..10 {
            read_all += u32::from(reads_all(&db, &mut conn, way).await);
        }
        sessions.push((way, conn));
    }
    assert!(read_all > 10, "while it is small, it is read as a whole: {read_all}");
    grow(&db, MANY).await;
    for (way, conn) in &mut sessions {
        // The last key: a scan would find the first key soon and stop.
        let way = &way.replace("k1", &format!("k{MANY}"));
        let mut slow = 0;
        while reads_all(&db, conn, way).await {
            slow += 1;
            assert!(slow < 100, "{way}");
        }
        for _ in 0..3 {
            assert!(!reads_all(&db, conn, way).await, "{way}");
        }
    }
}
