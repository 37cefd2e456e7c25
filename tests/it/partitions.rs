//! A table that its owner has partitioned: the same ctid exists in each partition.

use crate::support::db::TestDb;

/// Replaces pgonce's table with one that has the same columns and primary key, in four partitions.
pub async fn partition(db: &TestDb) {
    db.execute(
        "alter table {}.idempotency_keys rename to whole;
         alter index {}.idempotency_keys_pkey rename to whole_pkey;
         alter index {}.idempotency_keys_expires_at rename to whole_expires_at;
         create table {}.idempotency_keys (
           like {}.whole including defaults including storage,
           constraint idempotency_keys_pkey primary key (scope, key)) partition by hash (scope);
         create table {}.part_0 partition of {}.idempotency_keys for values with (modulus 4, remainder 0);
         create table {}.part_1 partition of {}.idempotency_keys for values with (modulus 4, remainder 1);
         create table {}.part_2 partition of {}.idempotency_keys for values with (modulus 4, remainder 2);
         create table {}.part_3 partition of {}.idempotency_keys for values with (modulus 4, remainder 3);
         create index idempotency_keys_expires_at on {}.idempotency_keys (expires_at)",
    )
    .await;
}

#[tokio::test]
async fn a_reaper_deletes_only_forgotten_keys_of_a_partitioned_table() {
    let db = TestDb::new().await;
    partition(&db).await;
    // Every partition has forgotten and remembered keys, at ctids that other partitions have too.
    db.execute(
        "insert into {}.idempotency_keys (created_at, expires_at, status, scope, key)
         select at - interval '1 day',
                at + case when n % 7 = 0 then interval '-1 s' * n else interval '1 day' end,
                2, 'scope ' || n, 'key'
           from generate_series(1, 200) n, lateral (select {}._clock() as at) t",
    )
    .await;
    let shared: i64 = db
        .ask(
            "select count(*) from {}.idempotency_keys a
              where a.expires_at > {}._clock()
                and exists (select from {}.idempotency_keys b
                             where b.ctid = a.ctid and b.expires_at < {}._clock())",
        )
        .await;
    assert!(shared > 10, "{shared} remembered keys lie at the place of a forgotten one");
    let deleted: i64 = sqlx::query_scalar(db.sql("select deleted from {}._reap_batch(10, null)"))
        .fetch_one(&db.pool)
        .await
        .unwrap();
    let left = "select count(*) from {}.idempotency_keys where expires_at ";
    assert_eq!(db.ask::<i64>(&format!("{left} > {{}}._clock()")).await, 172);
    assert!((10..=28).contains(&deleted), "{deleted}");
    // The result does not depend on the batches.
    sqlx::query(db.sql("call {}.reap(10)")).execute(&db.pool).await.unwrap();
    assert_eq!(db.ask::<i64>(&format!("{left} > {{}}._clock()")).await, 172);
    assert_eq!(db.ask::<i64>(&format!("{left} < {{}}._clock()")).await, 0);
}
