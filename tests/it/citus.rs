//! The two functions that sql/ops/citus.sql replaces behave like the originals. There is no Citus here: its functions
//! are faked, so that the file runs.

use std::time::Duration;

use crate::abandoned::abandon;
use crate::support::db::{TestDb, kept_for, op};

const STAND_INS: &str = "
    create schema {}_citus;
    create table {}_citus.pg_dist_partition (logicalrelid regclass);
    create table {}_citus.calls (name text);
    create function {}_citus.create_distributed_table(t regclass, by_column text, colocate_with text) returns void
      language sql as 'insert into {}_citus.calls select t::text || '' by '' || by_column;
                       insert into {}_citus.pg_dist_partition values (t)';
    create function {}_citus.create_distributed_function(name text) returns void
      language sql as 'insert into {}_citus.calls values (name)'";

/// Runs the file like psql.
async fn distribute(db: &TestDb) {
    let file = include_str!("../../sql/ops/citus.sql");
    let file =
        file.replace(":\"schema\"", &db.schema).replace(":'schema'", &format!("'{}'", db.schema));
    let path = format!("set search_path = {}_citus, pg_catalog; ", db.schema);
    sqlx::raw_sql(sqlx::AssertSqlSafe(path + &file)).execute(&mut db.conn().await).await.unwrap();
}

#[tokio::test]
async fn the_file_distributes_the_tables_once_and_each_function() {
    let db = TestDb::new().await;
    db.execute(STAND_INS).await;
    distribute(&db).await;
    distribute(&db).await;
    let tables = "select array_agg(name) = array['{}.idempotency_keys by scope', '{}.steps by scope', '{}.unfinished by scope']
                    from {}_citus.calls where name like '% by %'";
    assert!(db.ask::<bool>(tables).await);
    // Everything that a query on a shard may call: functions of a row's columns.
    let functions = "select array_agg(p.proname::text order by 1) from pg_proc p
                      where p.pronamespace = '{}'::regnamespace
                        and p.oid::regprocedure::text in (select name from {}_citus.calls)";
    let functions: Vec<String> = db.ask(functions).await;
    let rules = include_str!("../../sql/internal/row_rules.sql");
    let rules = rules.matches("create or replace function").count();
    assert_eq!(functions.len(), rules + ["_clock", "_lock_id", "_decide"].len(), "{functions:?}");
}

#[tokio::test]
async fn its_reaper_and_its_recovery_do_the_same() {
    let db = TestDb::new().await;
    db.execute(STAND_INS).await;
    distribute(&db).await;
    db.stop_clock().await;
    db.plant_overdue(250, 1).await;
    db.execute("update {}.idempotency_keys set scope = 'tenant ' || length(key)").await;
    let minute = Duration::from_secs(60);
    db.complete(&op("kept"), "").await;
    db.complete(&op("gone").policy(kept_for(minute)), "").await;
    abandon(&db, ["a", "b"].map(str::to_owned)).await;
    db.advance(minute).await;
    let picked = "select keys from {}._pick_abandoned('test/%', 10, 1000, 1000)";
    let mut first: Vec<String> = db.ask(picked).await;
    first.sort();
    assert_eq!(first, ["a", "b"]);
    assert!(db.ask::<Vec<String>>(picked).await.is_empty(), "they are put off");

    let mut conn = db.conn().await;
    assert_eq!(db.once.reap_once(&mut conn, 100).await.unwrap().deleted, 100);
    sqlx::query(db.sql("call {}.reap(100)")).execute(&mut conn).await.unwrap();
    let left = "select array_agg(key::text order by key) from {}.idempotency_keys";
    assert_eq!(db.ask::<Vec<String>>(left).await, ["a", "b", "kept"]);
}
