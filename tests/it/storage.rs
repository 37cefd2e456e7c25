//! What an operation costs the table: HOT updates, dead tuples, and what is never written.

use pgonce::{Failure, Inbox, Received, Response};
use sqlx::{Connection, Row};

use crate::support::db::{TestDb, effect, lasting, op, started, word};

/// Inserted, updated, HOT-updated and dead tuples of the keys table so far.
#[derive(Debug, PartialEq)]
struct Counters {
    inserted: i64,
    updated: i64,
    hot: i64,
    dead: i64,
}

/// Waits for the statistics of the test's closed sessions, then reads them.
async fn counters(db: &TestDb, inserted: i64, updated: i64) -> Counters {
    db.pool.close().await;
    db.until(&format!(
        "select n_tup_ins >= {inserted} and n_tup_upd >= {updated} from pg_stat_user_tables
          where relid = '{{}}.idempotency_keys'::regclass"
    ))
    .await;
    let row = sqlx::query(db.sql(
        "select n_tup_ins, n_tup_upd, n_tup_hot_upd, n_dead_tup
           from pg_stat_user_tables where relid = '{}.idempotency_keys'::regclass",
    ))
    .fetch_one(&mut db.conn().await)
    .await
    .unwrap();
    Counters { inserted: row.get(0), updated: row.get(1), hot: row.get(2), dead: row.get(3) }
}

#[tokio::test]
async fn completing_is_a_hot_update() {
    let db = TestDb::alone().await;
    db.execute("alter table {}.idempotency_keys set (autovacuum_enabled = off)").await;
    for n in 0..500 {
        let mut tx = db.pool.begin().await.unwrap();
        let claim = started(db.once.begin(&mut tx, &op(&format!("k{n:04}"))).await.unwrap());
        claim.complete(&mut tx, Response::bytes(vec![b'x'; 460])).await.unwrap();
        tx.commit().await.unwrap();
    }
    let counted = counters(&db, 500, 500).await;
    assert_eq!((counted.inserted, counted.updated), (500, 500));
    assert!(counted.hot * 100 >= counted.updated * 90, "{counted:?}");
    // The first version of a row is dead at once, and pruning removes it as the page fills. So far fewer dead rows
    // remain than there were operations: the last three of twelve on each page.
    assert!(counted.dead * 100 <= counted.inserted * 30, "{counted:?}");
    let heap_per_key: i64 = db.ask("select pg_relation_size('{}.idempotency_keys') / 500").await;
    assert!(heap_per_key < 800, "{heap_per_key} bytes of heap per key");
}

#[tokio::test]
async fn extending_a_lease_is_a_hot_update() {
    let db = TestDb::alone().await;
    let minute = std::time::Duration::from_secs(60);
    let mut claim = db.lease(&op("k"), minute).await;
    let mut conn = db.conn().await;
    for n in 2..20 {
        claim.extend(&db.pool, lasting(n * minute)).await.unwrap();
    }
    claim.complete(&mut conn, Response::empty()).await.unwrap();
    conn.close().await.unwrap();
    let counted = counters(&db, 1, 19).await;
    assert_eq!(counted.hot, counted.updated);
}

#[tokio::test]
async fn answers_other_than_started_write_nothing() {
    let db = TestDb::new().await;
    db.complete(&op("done"), "x").await;
    let mut holder = db.pool.begin().await.unwrap();
    let claim = started(db.once.begin(&mut holder, &op("held")).await.unwrap());
    let mut conn = db.conn().await;
    for (key, answer) in [("done", "replay"), ("held", "in progress")] {
        for _ in 0..20 {
            let mut tx = conn.begin().await.unwrap();
            assert_eq!(word(&db.once.begin(&mut tx, &op(key)).await.unwrap()), answer);
            let xid: Option<String> =
                sqlx::query_scalar("select pg_current_xact_id_if_assigned()::text")
                    .fetch_one(&mut *tx)
                    .await
                    .unwrap();
            assert_eq!(xid, None, "{answer} needs no transaction id, and so no WAL");
            tx.commit().await.unwrap();
        }
    }
    claim.complete(&mut holder, Response::empty()).await.unwrap();
    holder.commit().await.unwrap();
    conn.close().await.unwrap();
    let counted = counters(&db, 2, 2).await;
    assert_eq!((counted.inserted, counted.updated), (2, 2), "only the two that started");
}

#[tokio::test]
async fn a_batch_of_messages_reads_only_their_own_rows() {
    let db = TestDb::new().await;
    // Without statistics, like any new table.
    db.execute("alter table {}.idempotency_keys set (autovacuum_enabled = off)").await;
    let inbox = Inbox::new(&db.once, "orders").unwrap();
    let mut conn = db.conn().await;
    let mut tx = conn.begin().await.unwrap();
    for new in [100, 0] {
        for batch in 0..20 {
            let ids: Vec<_> = (0..100).map(|n| format!("{batch} {n}")).collect();
            let received = inbox.receive_many(&mut tx, &ids).await.unwrap();
            let is_new = |received: &&Received| matches!(received, Received::New(_));
            assert_eq!(received.iter().filter(is_new).count(), new);
        }
    }
    let sql = "select seq_tup_read + idx_tup_fetch from pg_stat_xact_user_tables
                where relid = '{}.idempotency_keys'::regclass";
    let read: i64 = sqlx::query_scalar(db.sql(sql)).fetch_one(&mut *tx).await.unwrap();
    // One read when a message is new. When it is seen: one by the insert, two by looks.
    assert!(read <= 2000 * (1 + 3), "{read} rows");
}

#[tokio::test]
async fn a_rolled_back_run_leaves_no_key() {
    let db = TestDb::new().await;
    for n in 0..10 {
        let _ = db
            .once
            .run(&db.pool, &op(&format!("k{n}")), async |tx| {
                effect(tx, &db.schema, "k").await?;
                Err::<(), _>(Failure::from("no"))
            })
            .await;
    }
    assert_eq!(db.ask::<i64>("select count(*) from {}.idempotency_keys").await, 0);
}

#[tokio::test]
async fn no_index_holds_a_column_that_changes_between_begin_and_complete() {
    let db = TestDb::new().await;
    let indexed: String = db
        .ask(
            "select string_agg(distinct a.attname, ',' order by a.attname)
               from pg_index i
               join pg_attribute a on a.attrelid = i.indrelid and a.attnum = any (i.indkey)
              where i.indrelid = '{}.idempotency_keys'::regclass",
        )
        .await;
    assert_eq!(indexed, "expires_at,key,scope");
    let partial: i64 = db
        .ask("select count(*) from pg_index where indrelid = '{}.idempotency_keys'::regclass and (indpred is not null or indexprs is not null)")
        .await;
    assert_eq!(partial, 0);
}
