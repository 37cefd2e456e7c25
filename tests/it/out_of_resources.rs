//! A server that runs out of something: most shortages pass, and a later retry succeeds.

use std::time::Duration;

use pgonce::{Error, ErrorKind, Operation, RunError};
use pgonce_testing::{Options, Throwaway};
use sqlx::postgres::PgPoolOptions;
use sqlx::{Connection, PgConnection};

use crate::support::db::{PATIENCE, TestDb, effect, op};

/// Disk full, memory or lock table full, too many connections, a configured limit, and the class itself.
const CLASS_53: [&str; 5] = ["53000", "53100", "53200", "53300", "53400"];

async fn inserts_fail(db: &TestDb, table: &str, sqlstate: &str, when: &str) {
    db.execute(&format!(
        "create or replace function {{}}.fail() returns trigger language plpgsql as
           $$ begin raise exception 'out of it' using errcode = '{sqlstate}'; end $$;
         drop trigger if exists fail on {{}}.{table};
         create constraint trigger fail after insert on {{}}.{table} {when}
           for each row execute function {{}}.fail()"
    ))
    .await;
}

#[tokio::test]
async fn what_the_server_has_run_out_of_may_be_there_later() {
    let db = TestDb::new().await;
    for (table, when) in [
        ("effect", "not deferrable"),
        ("effect", "deferrable initially deferred"),
        ("idempotency_keys", "not deferrable"),
    ] {
        for sqlstate in CLASS_53 {
            inserts_fail(&db, table, sqlstate, when).await;
            let key = format!("{table} {when} {sqlstate}");
            let work = async |tx: &mut PgConnection| effect(tx, &db.schema, "k").await;
            let error = db.once.run(&db.pool, &op(&key), work).await.unwrap_err();
            assert!(error.is_retryable(), "{key}: {error:?}");
            if table == "idempotency_keys" {
                let RunError::Protocol(error) = &error else { panic!("{key}: {error:?}") };
                let named = if sqlstate == "53300" { "max_connections" } else { "run out" };
                assert!(error.to_string().contains(named), "{error}");
                let mut conn = db.conn().await;
                let error = db.once.begin(&mut conn, &op(&key)).await.unwrap_err();
                assert!(error.is_retryable(), "{key}: {error:?}");
            }
            db.execute(&format!("drop trigger fail on {{}}.{table}")).await;
            db.once.run(&db.pool, &op(&key), work).await.unwrap();
        }
    }
}

/// A server whose lock table is full after some hundred locks.
async fn with_few_locks() -> (Throwaway, TestDb) {
    let options = Options::new().fast();
    let options =
        options.setting("max_connections", "12").setting("max_locks_per_transaction", "10");
    let server = Throwaway::start(&options).await.expect("a PostgreSQL");
    let db = TestDb::create("few_locks", server.connect_options(), 3).await;
    (server, db)
}

#[tokio::test]
async fn a_transaction_that_begins_too_many_keys_is_told_that_its_locks_are_the_cause() {
    let (_server, db) = with_few_locks().await;
    let mut conn = db.conn().await;
    let mut tx = conn.begin().await.unwrap();
    let mut begun = 0;
    let error: Error = loop {
        let op = Operation::new("acme/import", format!("row {begun}")).unwrap();
        match db.once.begin(&mut tx, &op).await {
            Ok(_) if begun < 10_000 => begun += 1,
            Ok(_) => panic!("the lock table never got full"),
            Err(error) => break error,
        }
    };
    assert!(!error.is_retryable(), "the same transaction needs as many locks again: {error:?}");
    let says = error.to_string();
    for word in ["locks", "one transaction", "max_locks_per_transaction"] {
        assert!(says.contains(word), "{says}");
    }
    // Fewer keys at a time work.
    tx.rollback().await.unwrap();
    let mut tx = conn.begin().await.unwrap();
    for n in 0..20 {
        let op = Operation::new("acme/import", format!("row {n}")).unwrap();
        let _ = db.once.begin(&mut tx, &op).await.unwrap();
    }
}

#[tokio::test]
async fn a_lock_table_that_others_have_filled_is_worth_a_retry() {
    let (_server, db) = with_few_locks().await;
    let mut conn = db.conn().await;
    // Takes every lock that the session needs, except the key's.
    let _ = db.once.begin(&mut conn, &op("before")).await.unwrap();
    let mut greedy = db.conn().await;
    let full = sqlx::raw_sql("select pg_advisory_lock(n) from generate_series(1, 1000000) n")
        .execute(&mut greedy)
        .await
        .unwrap_err();
    assert_eq!(full.as_database_error().unwrap().code().unwrap(), "53200");
    let error = db.once.begin(&mut conn, &op("k")).await.unwrap_err();
    assert_eq!(error.sqlstate().as_deref(), Some("53200"));
    assert!(error.is_retryable(), "{error:?}");
    greedy.close().await.unwrap();
    let again = async {
        while db.once.begin(&mut conn, &op("k")).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, again).await.expect("the locks are free again");
}

#[tokio::test]
async fn a_server_without_a_free_connection_is_worth_a_retry() {
    let options = Options::new().fast().setting("max_connections", "8");
    let server = Throwaway::start(&options).await.expect("a PostgreSQL");
    let db = TestDb::create("crowded", server.connect_options(), 1).await;
    db.pool.close().await;
    let mut crowd = Vec::new();
    let full = loop {
        match PgConnection::connect_with(&db.options).await {
            Ok(conn) => crowd.push(conn),
            Err(error) => break error,
        }
    };
    assert_eq!(full.as_database_error().unwrap().code().unwrap(), "53300");
    let patience = Duration::from_millis(300);
    let pool = PgPoolOptions::new().acquire_timeout(patience).connect_lazy_with(db.options.clone());
    let run = db.once.run(&pool, &op("k"), async |_| Ok::<_, Error>(())).await;
    let error = run.unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
    let RunError::Protocol(error) = error else { panic!("{error:?}") };
    assert_eq!(error.kind(), ErrorKind::Connection);
    assert!(error.to_string().contains("max_connections"), "{error}");
    // The work opens a connection.
    drop(crowd.pop());
    let pool = PgPoolOptions::new().max_connections(1).connect_lazy_with(db.options.clone());
    let connect =
        async |_: &mut PgConnection| PgConnection::connect_with(&db.options).await.map(drop);
    let error = db.once.run(&pool, &op("work"), connect).await.unwrap_err();
    assert!(matches!(error, RunError::Work { .. }) && error.is_retryable(), "{error:?}");
    drop(crowd);
    db.until("select count(*) < 5 from pg_stat_activity where backend_type = 'client backend'")
        .await;
    db.once.run(&pool, &op("k"), connect).await.unwrap();
}
