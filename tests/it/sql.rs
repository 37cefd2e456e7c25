//! The SQL functions without the library, as other languages use them.

use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};

use pgonce::{Begin, Failure, PgOnce, Response, RunError};
use sqlx::{Connection, Executor, PgConnection};
use tokio::io::AsyncWriteExt;

use crate::crash::pool_of_one;
use crate::support::db::{TestDb, op, psql, server, started, word};

const SQL_DOC: &str = include_str!("../../src/docs/sql.md");

fn block(language: &str) -> &'static str {
    let (_, rest) = SQL_DOC.split_once(&format!("```{language}\n")).expect("a code block");
    rest.split_once("```").expect("an end of the code block").0
}

#[tokio::test]
async fn psql_alone_can_begin_complete_replay_and_mismatch() {
    // In a new database, because the page uses the default schema.
    let mut conn = PgConnection::connect_with(&server().await.connect_options()).await.unwrap();
    conn.execute("create database sql_page").await.unwrap();
    let options = server().await.connect_options().database("sql_page");
    let mut conn = PgConnection::connect_with(&options).await.unwrap();
    PgOnce::new().migrate(&mut conn).await.unwrap();
    let mut psql = psql()
        .await
        .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h"])
        .arg(options.get_socket().expect("a socket"))
        .args(["-U", "postgres", "-d", "sql_page"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("psql, which comes with PostgreSQL");
    let mut stdin = psql.stdin.take().unwrap();
    stdin.write_all(block("sql").as_bytes()).await.unwrap();
    drop(stdin);
    let output = psql.wait_with_output().await.unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    let printed = String::from_utf8_lossy(&output.stdout);
    let printed: Vec<&str> = printed.lines().filter(|line| !line.is_empty()).collect();
    assert_eq!(printed.join("\n"), block("text").trim_end());
}

/// The statements that a page shows after some words, for this schema.
fn page_sql(db: &TestDb, behind: &str) -> Vec<String> {
    let page = include_str!("../../src/docs/operations.md");
    let (_, rest) = page.split_once(behind).expect(behind);
    let blocks = rest.split("```sql\n").skip(1).map(|block| block.split("```").next().unwrap());
    blocks.map(|block| block.replace("pgonce.", &format!("{}.", db.schema))).collect()
}

#[tokio::test]
async fn the_statements_that_operators_are_told_to_run_do_run() {
    let db = TestDb::new().await;
    let claim = started(db.once.begin(&mut db.conn().await, &op("k")).await.unwrap());
    drop(claim); // committed without complete
    let run = page_sql(&db, "\n## Reaping\n");
    assert_eq!(run.len(), 6, "{run:?}");
    for statement in run {
        db.execute(&statement).await;
    }
    let complete = &page_sql(&db, "committed without complete")[0];
    let complete = complete.replace("'SCOPE'", "'test/scope'").replace("'KEY'", "'k'");
    db.execute(&complete).await;
    let retry = db.once.begin(&mut db.conn().await, &op("k")).await.unwrap();
    let Begin::Replay(replay) = retry else { panic!("{}", word(&retry)) };
    assert_eq!(replay.response().body(), b"BODY");
}

#[tokio::test]
async fn a_row_hidden_by_row_level_security_is_never_run_again() {
    let db = TestDb::new().await;
    db.complete(&op("k"), "somebody else's").await;
    db.execute(
        "create role tenant_{} login;
         grant usage on schema {} to tenant_{};
         grant select, insert, update on {}.idempotency_keys to tenant_{};
         alter table {}.idempotency_keys enable row level security;
         create policy writes on {}.idempotency_keys for insert with check (true);
         create policy reads on {}.idempotency_keys for select using (status = 1)",
    )
    .await;
    let tenant = db.options.clone().username(&format!("tenant_{}", db.schema));
    let mut conn = PgConnection::connect_with(&tenant).await.unwrap();
    let error = db.once.begin(&mut conn, &op("k")).await.unwrap_err();
    assert_eq!(error.kind(), pgonce::ErrorKind::Corrupt, "{error}");
    assert!(error.to_string().contains("row-level security"), "{error}");
    conn.ping().await.unwrap(); // the server reports an error before it releases its locks
    // `run` learns it when it writes: RETURNING would show a hidden row.
    let calls = AtomicU32::new(0);
    let work = async |_: &mut PgConnection| {
        calls.fetch_add(1, Ordering::Relaxed);
        Ok::<_, Failure>(7)
    };
    let told = db.once.run(&pool_of_one(tenant), &op("k"), work).await.unwrap_err();
    let RunError::Protocol(error) = told else { panic!("{told:?}") };
    assert_eq!(error.sqlstate().as_deref(), Some("42501"), "{error}");
    assert!(error.to_string().contains("policy") && !error.is_retryable(), "{error}");
    assert_eq!(calls.into_inner(), 1);
    db.execute("drop owned by tenant_{}; drop role tenant_{}").await;
}

#[tokio::test]
async fn a_read_only_database_is_named_as_such() {
    let db = TestDb::new().await;
    let mut conn = db.conn().await;
    let mut tx = conn.begin_with("begin read only").await.unwrap();
    let error = db.once.begin(&mut tx, &op("k")).await.unwrap_err();
    assert_eq!(error.kind(), pgonce::ErrorKind::ReadOnly);
    assert!(error.is_retryable() && error.to_string().contains("primary"));
}

#[tokio::test]
async fn statements_survive_a_column_added_under_them() {
    let db = TestDb::new().await;
    let mut conn = db.conn().await;
    let _ = db.once.begin(&mut conn, &op("a")).await.unwrap();
    db.execute("alter table {}.idempotency_keys add column later text").await;
    let claim = started(db.once.begin(&mut conn, &op("b")).await.unwrap());
    claim.complete(&mut conn, Response::empty()).await.unwrap();
    assert_eq!(word(&db.once.begin(&mut conn, &op("b")).await.unwrap()), "replay");
}
