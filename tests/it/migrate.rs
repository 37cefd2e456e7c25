//! Bringing the schema up to date.

use std::time::{Duration, Instant};

use pgonce::{ErrorKind, PgOnce, SchemaName};
use sqlx::Connection;

use crate::harness::{PATIENCE, TestDb};

/// A test database whose schema is gone again.
async fn bare() -> TestDb {
    let db = TestDb::new().await;
    db.execute("drop schema {} cascade").await;
    db
}

#[tokio::test]
async fn migrate_creates_once_and_then_does_nothing() {
    let db = bare().await;
    let mut conn = db.conn().await;
    assert_eq!(db.once.check(&mut conn).await.unwrap_err().kind(), ErrorKind::SchemaOutdated);
    let first = db.once.migrate(&mut conn).await.unwrap();
    assert!(first.from == 0 && first.to >= 1 && first.functions_replaced);
    db.once.check(&mut conn).await.unwrap();
    let mut tx = conn.begin().await.unwrap();
    let again = db.once.migrate(&mut tx).await.unwrap();
    assert!(again.from == again.to && !again.functions_replaced);
    let wrote: bool = sqlx::query_scalar("select pg_current_xact_id_if_assigned() is not null")
        .fetch_one(&mut *tx)
        .await
        .unwrap();
    assert!(!wrote, "up to date means: two reads and nothing else");
}

#[tokio::test]
async fn ten_that_start_at_once_all_succeed() {
    let db = bare().await;
    let mut tasks = tokio::task::JoinSet::new();
    let barrier = std::sync::Arc::new(tokio::sync::Barrier::new(10));
    for _ in 0..10 {
        let (once, mut conn, barrier) = (db.once.clone(), db.conn().await, barrier.clone());
        tasks.spawn(async move {
            barrier.wait().await;
            once.migrate(&mut conn).await
        });
    }
    while let Some(migrated) = tasks.join_next().await {
        migrated.unwrap().unwrap();
    }
    let once_each: bool =
        db.ask("select count(*) = max(version) from {}.migrations where version > 0").await;
    assert!(once_each);
    let locks: i64 =
        db.ask("select count(*) from pg_locks l join pg_stat_activity a using (pid) where locktype = 'advisory' and a.application_name = '{}'").await;
    assert_eq!(locks, 0, "no lock outlives its transaction");
}

#[tokio::test]
async fn a_failing_migration_leaves_nothing() {
    let db = bare().await;
    // The schema is there, and something in it is in the way of the table.
    db.execute("create schema {}; create view {}.idempotency_keys as select 1 as one").await;
    let mut conn = db.conn().await;
    let error = db.once.migrate(&mut conn).await.unwrap_err();
    assert_eq!(error.sqlstate().as_deref(), Some("42P07"));
    let relations: i64 =
        db.ask("select count(*) from pg_class where relnamespace = '{}'::regnamespace").await;
    assert_eq!(relations, 1, "only the view");
    db.execute("drop view {}.idempotency_keys").await;
    db.once.migrate(&mut conn).await.unwrap();
}

#[tokio::test]
async fn the_printed_sql_is_what_migrate_runs() {
    let db = bare().await;
    let sql = db.once.migration_sql(0);
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut db.conn().await).await.unwrap();
    let mut conn = db.conn().await;
    db.once.check(&mut conn).await.unwrap();
    let migrated = db.once.migrate(&mut conn).await.unwrap();
    assert!(!migrated.functions_replaced);
}

#[tokio::test]
async fn changed_functions_are_replaced_as_a_whole() {
    let db = TestDb::new().await;
    db.execute(
        "create or replace function {}.extend(scope text, key text, token uuid, lease_ms bigint)
           returns void language sql as 'select'; update {}.migrations set digest = 'older' where version = 0",
    )
    .await;
    let mut conn = db.conn().await;
    assert_eq!(db.once.check(&mut conn).await.unwrap_err().kind(), ErrorKind::SchemaOutdated);
    assert!(db.once.migrate(&mut conn).await.unwrap().functions_replaced);
    let restored: bool =
        db.ask("select prosrc like '%claim_lost%' from pg_proc where oid = '{}.extend(text, text, uuid, bigint)'::regprocedure").await;
    assert!(restored);
}

#[tokio::test]
async fn a_schema_of_version_1_is_brought_up_to_date_with_its_keys() {
    let db = bare().await;
    let first = include_str!("../../migrations/0001_idempotency_keys.sql")
        .replace(":\"schema\"", &format!("\"{}\"", db.schema));
    db.execute(&format!(
        "create schema {{}}; {first};
         create table {{}}.migrations
           (version integer primary key, name text not null, digest text, applied_at timestamptz default now());
         insert into {{}}.migrations (version, name) values (1, '0001_idempotency_keys'), (0, 'functions');
         create function {{}}.release(scope text, key text, token uuid) returns void language sql as 'select';
         insert into {{}}.idempotency_keys
           (created_at, expires_at, lease_expires_at, completed_at, token, attempt, status, scope, key, response_body)
         values (now(), now() + interval '1 day', now(), now(), gen_random_uuid(), 1, 2, 'test/scope', 'k', 'old'),
                (now(), now() + interval '1 day', now(), null, gen_random_uuid(), 1, 1, 'test/scope', 'left', null),
                (now(), now() + interval '1 day', now(), null, null, 1, 1, 'test/scope', 'released', null),
                (now(), now() + interval '1 day', now() + interval '1 day', null, gen_random_uuid(), 1, 1,
                 'test/scope', 'transactional', null)"
    ))
    .await;
    let mut conn = db.conn().await;
    let migrated = db.once.migrate(&mut conn).await.unwrap();
    assert!(migrated.from == 1 && migrated.functions_replaced);
    db.once.check(&mut conn).await.unwrap();
    let answer = db.once.begin(&mut conn, &crate::harness::op("k")).await.unwrap();
    let pgonce::Begin::Replay(replay) = answer else { panic!("{answer:?}") };
    assert_eq!(replay.response().body(), b"old");
    assert_eq!(crate::abandoned::abandoned(&db).await, ["left"]);
    assert_eq!(db.ask::<i64>("select count(*) from {}.unfinished").await, 1);
    let old: i64 = db.ask(
        "select count(*) from pg_proc where pronamespace = '{}'::regnamespace and proname = 'release'",
    )
    .await;
    assert_eq!(old, 1, "the old signature is gone");
    // Its columns are those of a new table, in another order, in which everything works too.
    let columns = "select string_agg(concat_ws(' ', attname, format_type(atttypid, atttypmod), attnotnull,
                                               attcollation, attcompression, pg_get_expr(adbin, adrelid)),
                                     ', ' order by attname)
                     from pg_attribute a left join pg_attrdef on adrelid = attrelid and adnum = attnum
                    where attrelid = '{}.idempotency_keys'::regclass and attnum > 0";
    let new = TestDb::new().await;
    assert_eq!(db.ask::<String>(columns).await, new.ask::<String>(columns).await);
    let indexes = "select string_agg(replace(pg_get_indexdef(indexrelid), '{}', ''), ', '
                                     order by replace(pg_get_indexdef(indexrelid), '{}', ''))
                     from pg_index where indrelid = '{}.idempotency_keys'::regclass";
    assert_eq!(db.ask::<String>(indexes).await, new.ask::<String>(indexes).await);
    db.execute("create table {}.effect (key text)").await;
    for _ in 0..2 {
        let work = async |tx: &mut sqlx::PgConnection| {
            sqlx::query(db.sql("insert into {}.effect values ('k')")).execute(tx).await.map(drop)
        };
        db.once.run(&db.pool, &crate::harness::op("run"), work).await.unwrap();
    }
    assert_eq!(db.effects().await, 1);
    let claim = db.lease(&crate::harness::op("leased"), Duration::from_secs(60)).await;
    claim.complete(&mut conn, pgonce::Response::bytes("done")).await.unwrap();
    let answer = db.once.begin(&mut conn, &crate::harness::op("leased")).await.unwrap();
    assert_eq!(crate::harness::word(&answer), "replay");
    db.execute("update {}.idempotency_keys set expires_at = clock_timestamp(), lease_expires_at = clock_timestamp()").await;
    assert_eq!(db.once.reap_once(&mut conn, 100).await.unwrap().deleted, 6);
}

// What has been granted on it, and what else was made for it, is not ours to make again.
#[tokio::test]
async fn a_table_that_is_there_is_never_made_anew() {
    let db = TestDb::new().await;
    let same = "select '{}.idempotency_keys'::regclass::oid::bigint";
    let before: i64 = db.ask(same).await;
    let free = "select array_to_string(reloptions, ' ') from pg_class
                 where oid = '{}.idempotency_keys'::regclass";
    assert_eq!(db.ask::<String>(free).await, "fillfactor=95");
    // As version 4 left it, but that somebody has dropped the views.
    db.execute(
        "delete from {}.migrations where version >= 5;
         alter table {}.idempotency_keys set (autovacuum_vacuum_threshold = 5000, fillfactor = 80);
         drop view {}.keys cascade;
         drop function {}.bound_locks(timestamptz);
         create function {}.bound_locks(deadline timestamptz) returns void language sql as 'select';
         create function {}.take_lock(lock_id bigint, deadline timestamptz) returns void language sql as 'select';
         create or replace function {}.lock_id(scope text, key text) returns bigint
           language sql immutable parallel safe as 'select 1::bigint';
         create or replace function {}.can_open() returns boolean language sql volatile as 'select true'",
    )
    .await;
    let migrated = db.once.migrate(&mut db.conn().await).await.unwrap();
    assert_eq!((migrated.from, migrated.to), (4, 6));
    assert_eq!(db.ask::<i64>(same).await, before);
    assert!(db.ask::<String>(free).await.ends_with("fillfactor=80"), "the owner's choice");
    let locks = "select count(*) from pg_proc
                  where pronamespace = '{}'::regnamespace and proname = 'take_lock'";
    assert_eq!(db.ask::<i64>(locks).await, 1, "the old signature is gone");
}

#[tokio::test]
async fn an_upgrade_does_not_fail_for_a_vacuum() {
    let db = TestDb::new().await;
    db.execute(
        "delete from {}.migrations where version = 6;
         alter table {}.idempotency_keys reset (fillfactor)",
    )
    .await;
    let mut vacuum = db.pool.begin().await.unwrap();
    let lock = db.sql("lock table {}.idempotency_keys in share update exclusive mode");
    sqlx::raw_sql(lock).execute(&mut *vacuum).await.unwrap();
    assert_eq!(db.once.migrate(&mut db.conn().await).await.unwrap().to, 6);
}

#[tokio::test]
async fn a_schema_of_a_newer_library_is_refused() {
    let db = TestDb::new().await;
    db.execute("insert into {}.migrations (version, name) values (999, 'from the future')").await;
    let mut conn = db.conn().await;
    for error in
        [db.once.check(&mut conn).await.unwrap_err(), db.once.migrate(&mut conn).await.unwrap_err()]
    {
        assert_eq!(error.kind(), ErrorKind::SchemaTooNew);
        assert!(error.to_string().contains("version 999"), "{error}");
    }
}

#[tokio::test]
async fn a_call_without_the_schema_says_what_to_do() {
    let db = bare().await;
    let error = db.once.begin(&mut db.conn().await, &crate::harness::op("k")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SchemaOutdated);
    assert!(error.to_string().contains("run migrate"), "{error}");
}

#[tokio::test]
async fn a_long_reader_is_not_queued_behind() {
    let db = TestDb::new().await;
    let mut reader = db.conn().await;
    let mut tx = reader.begin().await.unwrap();
    sqlx::query(db.sql("select 1 from {}.idempotency_keys")).execute(&mut *tx).await.unwrap();
    // A reader in a transaction does not hinder replacing the functions.
    db.execute("update {}.migrations set digest = 'older' where version = 0").await;
    assert!(db.once.migrate(&mut db.conn().await).await.unwrap().functions_replaced);
    // A migration's DDL cannot have its lock, and everybody else queues behind it ...
    let limit = "set local lock_timeout = '3s';\n";
    let ddl = format!("{limit}alter table {}.idempotency_keys add column later text;\n", db.schema);
    let printed = db.once.migration_sql(1);
    let sql = printed.replacen(limit, &ddl, 1);
    assert_ne!(sql, printed);
    let mut conn = db.conn().await;
    let migration = tokio::spawn(async move {
        let begun = Instant::now();
        let result = sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut conn).await;
        (result, begun.elapsed())
    });
    db.until_waiting(1).await;
    let behind = db.ask::<i64>("select count(*) from {}.idempotency_keys");
    let (rows, migration) =
        tokio::time::timeout(PATIENCE, async { tokio::join!(behind, migration) }).await.unwrap();
    // ... only until it gives up, with the reader still there.
    let (result, took) = migration.unwrap();
    assert_eq!(result.unwrap_err().as_database_error().unwrap().code().unwrap(), "55P03");
    assert!(took >= Duration::from_secs(2), "it tried: {took:?}");
    assert_eq!(rows, 0);
    tx.commit().await.unwrap();
    db.once.check(&mut db.conn().await).await.unwrap();
}

#[tokio::test]
async fn two_schemas_do_not_know_each_other() {
    let (a, b) = (TestDb::new().await, TestDb::new().await);
    let op = crate::harness::op("k");
    let mut conn = a.conn().await;
    let mut tx = conn.begin().await.unwrap();
    let in_a = crate::harness::started(a.once.begin(&mut tx, &op).await.unwrap());
    let in_b = b.once.begin(&mut b.conn().await, &op).await.unwrap();
    assert_eq!(crate::harness::word(&in_b), "started");
    drop((in_a, in_b));
}

#[tokio::test]
async fn the_users_own_migrations_are_left_alone() {
    let db = bare().await;
    db.execute("create schema {}_app; create table {}_app._sqlx_migrations (version bigint)").await;
    let app = db.options.clone().options([("search_path", format!("{}_app", db.schema))]);
    let mut conn = sqlx::PgConnection::connect_with(&app).await.unwrap();
    db.once.migrate(&mut conn).await.unwrap();
    let objects: i64 =
        db.ask("select count(*) from pg_class where relnamespace = '{}_app'::regnamespace").await;
    assert_eq!(objects, 1);
    let public: i64 =
        db.ask("select count(*) from pg_class where relnamespace = 'public'::regnamespace").await;
    assert_eq!(public, 0);
}

#[test]
fn the_schema_name_appears_quoted_and_no_placeholder_is_left() {
    let once = PgOnce::new().schema(SchemaName::new("select").unwrap()); // a reserved word
    let sql = once.migration_sql(0);
    assert!(
        sql.contains("\"select\".idempotency_keys") && !sql.contains(":\"") && !sql.contains(":'")
    );
}

#[tokio::test]
async fn the_bare_sql_can_be_applied_statement_by_statement() {
    let db = bare().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, db.once.migration_sql(0)).unwrap();
    let url = crate::harness::server().await.url();
    let ended = crate::harness::psql()
        .await
        .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", &url, "-f"])
        .arg(file.path())
        .output()
        .await
        .unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    db.once.check(&mut db.conn().await).await.unwrap();
}
