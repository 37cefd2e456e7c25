//! Migrations.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pgonce::{ErrorKind, PgOnce, SchemaName};
use sqlx::Connection;

use crate::support::db::{PATIENCE, TestDb, lasting, op, started, word};

/// A test database without the schema.
async fn bare() -> TestDb {
    let db = TestDb::new().await;
    db.execute("drop schema {} cascade").await;
    db
}

#[tokio::test]
async fn migrate_creates_once_and_then_does_nothing() {
    let db = bare().await;
    let mut conn = db.conn().await;
    assert_eq!(db.once.check(&db.pool).await.unwrap_err().kind(), ErrorKind::SchemaOutdated);
    let first = db.once.migrate(&mut conn).await.unwrap();
    assert!(first.from == 0 && first.to >= 1 && first.functions_replaced);
    db.once.check(&db.pool).await.unwrap();
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
    for isolation in ["read committed", "serializable"] {
        let options = [("default_transaction_isolation", isolation)];
        ten_succeed(bare().await, options).await;
    }
}

async fn ten_succeed(db: TestDb, options: [(&str, &str); 1]) {
    let mut tasks = tokio::task::JoinSet::new();
    let barrier = std::sync::Arc::new(tokio::sync::Barrier::new(10));
    for _ in 0..10 {
        let with = db.options.clone().options(options);
        let mut conn = sqlx::PgConnection::connect_with(&with).await.unwrap();
        let (once, barrier) = (db.once.clone(), barrier.clone());
        tasks.spawn(async move {
            barrier.wait().await;
            once.migrate(&mut conn).await
        });
    }
    while let Some(migrated) = tasks.join_next().await {
        migrated.unwrap().unwrap();
    }
    db.once.check(&db.pool).await.unwrap();
    let locks: i64 =
        db.ask("select count(*) from pg_locks l join pg_stat_activity a using (pid) where locktype = 'advisory' and a.application_name = '{}'").await;
    assert_eq!(locks, 0, "no lock outlives its transaction");
}

#[tokio::test]
async fn a_failing_migration_leaves_nothing() {
    let db = bare().await;
    // The schema exists, and contains a view with the table's name.
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
    let sql = db.once.migration_sql();
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut db.conn().await).await.unwrap();
    let mut conn = db.conn().await;
    db.once.check(&db.pool).await.unwrap();
    let migrated = db.once.migrate(&mut conn).await.unwrap();
    assert!(!migrated.functions_replaced);
}

/// Makes the schema report this version, serving libraries from `serves_from` on.
async fn pretend(db: &TestDb, version: u32, serves_from: u32, digest: &str) {
    db.execute(&version_function(version, serves_from, digest)).await;
}

fn version_function(version: u32, serves_from: u32, digest: &str) -> String {
    format!(
        "create or replace function {{}}.schema_version(out version integer, out serves_from integer, out digest text)
           language sql stable as $$ select {version}, {serves_from}, '{digest}' $$"
    )
}

#[tokio::test]
async fn changed_functions_are_replaced_as_a_whole() {
    let db = TestDb::new().await;
    db.execute(
        "create or replace function {}._finished_by(p_scope text, p_key text, p_token uuid)
           returns text language sql as 'select null::text'",
    )
    .await;
    pretend(&db, 1, 1, "older").await;
    let mut conn = db.conn().await;
    assert_eq!(db.once.check(&db.pool).await.unwrap_err().kind(), ErrorKind::SchemaOutdated);
    assert!(db.once.migrate(&mut conn).await.unwrap().functions_replaced);
    let restored: bool =
        db.ask("select prosrc like '%_status_word%' from pg_proc where oid = '{}._finished_by'::regproc").await;
    assert!(restored);
}

#[tokio::test]
async fn a_renamed_schema_is_noticed_and_mended() {
    let db = TestDb::new().await;
    db.complete(&op("k"), "old").await;
    db.execute("alter schema {} rename to {}_renamed").await;
    let renamed = format!("{}_renamed", db.schema);
    let db = TestDb::open(&renamed, db.options.clone(), 4).await;
    let mut conn = db.conn().await;
    let error = db.once.check(&db.pool).await.unwrap_err();
    assert!(error.to_string().contains("was it renamed"), "{error}");
    assert!(db.once.migrate(&mut conn).await.unwrap().functions_replaced);
    db.once.check(&db.pool).await.unwrap();
    assert_eq!(word(&db.once.begin(&mut conn, &op("k")).await.unwrap()), "replay");
    assert_eq!(word(&db.once.begin(&mut conn, &op("new")).await.unwrap()), "started");
}

#[tokio::test]
async fn a_schema_that_no_release_has_made_is_refused() {
    let db = TestDb::new().await;
    db.execute("create table {}.migrations (version integer)").await;
    let mut conn = db.conn().await;
    for error in
        [db.once.check(&db.pool).await.unwrap_err(), db.once.migrate(&mut conn).await.unwrap_err()]
    {
        assert_eq!(error.kind(), ErrorKind::SchemaOutdated);
        assert!(error.to_string().contains("unreleased version"), "{error}");
    }
    // The printed script does not use the library.
    let sql = sqlx::AssertSqlSafe(db.once.migration_sql());
    let error = sqlx::raw_sql(sql).execute(&mut conn).await.unwrap_err().to_string();
    assert!(error.contains("unreleased version"), "{error}");
}

#[tokio::test]
async fn a_database_that_does_not_tell_characters_is_refused() {
    let options = crate::support::db::server().await.connect_options();
    let mut conn = sqlx::PgConnection::connect_with(&options).await.unwrap();
    let create = "create database ascii encoding 'SQL_ASCII' locale 'C' template template0";
    sqlx::raw_sql(create).execute(&mut conn).await.unwrap();
    let mut conn = sqlx::PgConnection::connect_with(&options.database("ascii")).await.unwrap();
    let error = PgOnce::new().migrate(&mut conn).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SchemaOutdated);
    assert!(error.to_string().contains("SQL_ASCII"), "{error}");
}

/// The script of a fictional next release: a function with a new body that calls a new helper, and a function that is
/// no longer called. It serves this release.
fn next_release(db: &TestDb) -> String {
    let schema = &db.schema;
    let helper = format!(
        "execute $next$create or replace function \"{schema}\"._next_helper() returns integer
           language sql as $$ select 1 $$$next$;\n"
    );
    let last = "    execute $pgonce_file$\n-- public/schema_version";
    let deadline = "  v_deadline := clock_timestamp()\n";
    let calls = format!("  perform \"{schema}\"._next_helper();\n{deadline}");
    let mut sql = db.once.migration_sql();
    for (this, next) in [
        ("v_version > 1 and v_serves_from > 1", "v_version > 2 and v_serves_from > 2"),
        ("v_version > 1 or v_version = 1 and", "v_version > 2 or v_version = 2 and"),
        ("select 1, 1,", "select 2, 1,"),
        (deadline, calls.as_str()),
        (last, &format!("{helper}{last}")),
    ] {
        assert!(sql.contains(this), "{this}");
        sql = sql.replace(this, next);
    }
    sql
}

#[tokio::test(flavor = "multi_thread")]
async fn live_traffic_goes_through_the_next_release_and_old_processes_may_restart() {
    let db = TestDb::new().await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..4 {
        let (once, pool, stop) = (db.once.clone(), db.pool.clone(), Arc::clone(&stop));
        clients.spawn(async move {
            let mut done = 0;
            while !stop.load(Ordering::Relaxed) || done == 0 {
                let key = format!("{client}-{done}");
                let ran = once.run(&pool, &op(&key), async |_| Ok::<_, sqlx::Error>(1)).await;
                ran.expect("run");
                let mut tx = pool.begin().await.expect("begin");
                let verb = op(&format!("verb {key}"));
                let claim = started(once.begin(&mut tx, &verb).await.expect("verb"));
                claim.complete(&mut tx, pgonce::Response::empty()).await.expect("complete");
                tx.commit().await.expect("commit");
                let leased = op(&format!("leased {key}"));
                let minute = Duration::from_secs(60);
                let claim = started(
                    once.begin_leased(&pool, &leased, lasting(minute)).await.expect("leased"),
                );
                claim.complete_leased(&pool, pgonce::Response::empty()).await.expect("complete");
                done += 1;
            }
            done
        });
    }
    let mut conn = db.conn().await;
    let sql = next_release(&db);
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut conn).await.unwrap();
    // The processes have called the new functions.
    let before = db.ask::<i64>("select count(*) from {}.idempotency_keys").await;
    db.until(&format!("select count(*) > {before} + 50 from {{}}.idempotency_keys")).await;
    stop.store(true, Ordering::Relaxed);
    while let Some(done) = clients.join_next().await {
        assert!(done.unwrap() > 0);
    }
    // A process of this release restarts.
    db.once.check(&db.pool).await.unwrap();
    let migrated = db.once.migrate(&mut conn).await.unwrap();
    assert_eq!((migrated.from, migrated.to, migrated.functions_replaced), (2, 2, false));
    assert_eq!(word(&db.once.begin(&mut conn, &op("verb 0-0")).await.unwrap()), "replay");
}

#[tokio::test]
async fn an_old_script_does_nothing_to_a_newer_schema() {
    let db = TestDb::new().await;
    let run = async || {
        let sql = sqlx::AssertSqlSafe(db.once.migration_sql());
        sqlx::raw_sql(sql).execute(&mut db.conn().await).await
    };
    pretend(&db, 2, 1, "next").await;
    run().await.unwrap();
    assert_eq!(db.ask::<i32>("select version from {}.schema_version()").await, 2);
    pretend(&db, 3, 2, "the one after").await;
    let error = run().await.unwrap_err().to_string();
    assert!(error.contains("update pgonce"), "{error}");
}

#[tokio::test]
async fn an_older_process_that_migrates_behind_a_newer_one_leaves_its_schema_alone() {
    for serves_from in [1, 2] {
        let db = TestDb::new().await;
        pretend(&db, 1, 1, "older").await;
        let mut newer = db.conn().await;
        let mut migration = newer.begin().await.unwrap();
        let lock = "select pg_advisory_xact_lock(hashtextextended('pgonce migrate {}', 0))";
        sqlx::query(db.sql(lock)).execute(&mut *migration).await.unwrap();
        let (once, mut conn) = (db.once.clone(), db.conn().await);
        let older = tokio::spawn(async move { once.migrate(&mut conn).await });
        db.until_waiting(1).await;
        let next = version_function(2, serves_from, "next");
        sqlx::raw_sql(db.sql(&next)).execute(&mut *migration).await.unwrap();
        migration.commit().await.unwrap();
        match older.await.unwrap() {
            Ok(did) => {
                assert_eq!(
                    (serves_from, did.from, did.to, did.functions_replaced),
                    (1, 1, 2, false)
                );
            }
            Err(error) => {
                assert_eq!((serves_from, error.kind()), (2, ErrorKind::SchemaTooNew));
                assert!(error.to_string().contains("update pgonce"), "{error}");
            }
        }
        assert_eq!(db.ask::<String>("select digest from {}.schema_version()").await, "next");
    }
}

#[tokio::test]
async fn a_schema_of_a_newer_library_is_refused() {
    let db = TestDb::new().await;
    pretend(&db, 999, 998, "future").await;
    let mut conn = db.conn().await;
    for error in
        [db.once.check(&db.pool).await.unwrap_err(), db.once.migrate(&mut conn).await.unwrap_err()]
    {
        assert_eq!(error.kind(), ErrorKind::SchemaTooNew);
        assert!(error.to_string().contains("version 999"), "{error}");
    }
}

#[tokio::test]
async fn a_call_without_the_schema_says_what_to_do() {
    let db = bare().await;
    let error =
        db.once.begin(&mut db.conn().await, &crate::support::db::op("k")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SchemaOutdated);
    assert!(error.to_string().contains("run migrate"), "{error}");
}

#[tokio::test]
async fn a_long_reader_is_not_queued_behind() {
    let db = TestDb::new().await;
    let mut reader = db.conn().await;
    let mut tx = reader.begin().await.unwrap();
    sqlx::query(db.sql("select 1 from {}.idempotency_keys")).execute(&mut *tx).await.unwrap();
    // A reader in a transaction does not block the replacement of functions.
    pretend(&db, 1, 1, "older").await;
    assert!(db.once.migrate(&mut db.conn().await).await.unwrap().functions_replaced);
    // A migration's DDL cannot get its lock, and all others queue behind it ...
    pretend(&db, 1, 1, "older").await;
    let limit = "  perform set_config('lock_timeout', '3s', true);\n";
    let ddl = format!("{limit}alter table {}.idempotency_keys add column later text;\n", db.schema);
    let printed = db.once.migration_sql();
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
    // ... but only until it gives up, with the reader still there.
    let (result, took) = migration.unwrap();
    assert_eq!(result.unwrap_err().as_database_error().unwrap().code().unwrap(), "55P03");
    assert!(took >= Duration::from_secs(2), "it tried: {took:?}");
    assert_eq!(rows, 0);
    tx.commit().await.unwrap();
}

#[tokio::test]
async fn two_schemas_do_not_know_each_other() {
    let (a, b) = (TestDb::new().await, TestDb::new().await);
    let op = crate::support::db::op("k");
    let mut conn = a.conn().await;
    let mut tx = conn.begin().await.unwrap();
    let in_a = crate::support::db::started(a.once.begin(&mut tx, &op).await.unwrap());
    let in_b = b.once.begin(&mut b.conn().await, &op).await.unwrap();
    assert_eq!(crate::support::db::word(&in_b), "started");
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
    let sql = once.migration_sql();
    assert!(
        sql.contains("\"select\".idempotency_keys") && !sql.contains(":\"") && !sql.contains(":'")
    );
}

#[tokio::test]
async fn the_printed_sql_goes_through_psql_and_a_second_time_does_nothing() {
    let db = bare().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, db.once.migration_sql()).unwrap();
    let url = crate::support::db::server().await.url();
    let mut said = Vec::new();
    for _ in 0..2 {
        let ended = crate::support::db::psql()
            .await
            .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", &url, "-f"])
            .arg(file.path())
            .output()
            .await
            .unwrap();
        let stderr = String::from_utf8(ended.stderr).unwrap();
        assert!(ended.status.success(), "{stderr}");
        said.push(stderr);
    }
    assert_eq!(said[0], "");
    assert!(said[1].contains("is up to date (version 1); nothing was done"), "{}", said[1]);
    db.once.check(&db.pool).await.unwrap();
}
