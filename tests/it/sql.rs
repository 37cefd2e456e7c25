//! The SQL side on its own: what neighbours in other languages rely on.

use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};

use pgonce::{Failure, PgOnce, Response, RunError};
use sqlx::{Connection, Executor, PgConnection};
use tokio::io::AsyncWriteExt;

use crate::crash::pool_of_one;
use crate::harness::{TestDb, effect, op, psql, server, started, word};

const SQL_DOC: &str = include_str!("../../src/docs/sql.md");

/// The text of the first code block of a language.
fn block(language: &str) -> &'static str {
    let (_, rest) = SQL_DOC.split_once(&format!("```{language}\n")).expect("a code block");
    rest.split_once("```").expect("an end of the code block").0
}

#[tokio::test]
async fn psql_alone_can_begin_complete_replay_and_mismatch() {
    // In a database of its own, because the page uses the default schema.
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

#[tokio::test]
async fn three_roles_have_just_the_rights_they_need() {
    let db = TestDb::new().await;
    // The grants of src/docs/operations.md.
    let page = include_str!("../../src/docs/operations.md");
    let (_, rest) = page.split_once("```sql\n").unwrap();
    let grants = rest.split_once("```").unwrap().0.replace("pgonce.", &format!("{}.", db.schema));
    let grants = grants.replace("schema pgonce", &format!("schema {}", db.schema));
    let mut grants = grants;
    for role in ["app", "reaper", "auditor"] {
        db.execute(&format!("create role {role}_{{}} login")).await;
        grants = grants.replace(&format!(" {role};"), &format!(" {role}_{};", db.schema));
    }
    db.execute(&grants).await;
    db.execute("grant insert, select on {}.effect to app_{}").await;
    let as_role = |role: &str| db.options.clone().username(&format!("{role}_{}", db.schema));

    let app = sqlx::PgPool::connect_with(as_role("app")).await.unwrap();
    let mut conn = app.acquire().await.unwrap();
    db.once.check(&mut conn).await.unwrap();
    drop(conn);
    for _ in 0..2 {
        db.once
            .run(&app, &op("k"), async |tx| effect(tx, &db.schema, "k").await.map(drop))
            .await
            .unwrap();
    }
    let mut conn = app.acquire().await.unwrap();
    let mut claim = db.lease(&op("leased"), std::time::Duration::from_secs(60)).await;
    claim.extend(&app, std::time::Duration::from_secs(90)).await.unwrap();
    claim.release(&mut conn).await.unwrap();
    let minute = std::time::Duration::from_secs(60);
    drop(started(db.once.begin_leased(&app, &op("again"), minute).await.unwrap()));
    assert_eq!(db.once.abandoned(&mut conn, 10).await.unwrap().len(), 0, "none has lapsed");
    let pick = db.sql("call {}.pick_abandoned('%')");
    conn.execute(pick).await.unwrap();
    let refused = db.once.reap_once(&mut conn, 10).await.unwrap_err();
    assert_eq!(refused.sqlstate().as_deref(), Some("42501"), "the app deletes nothing");

    let mut reaper = PgConnection::connect_with(&as_role("reaper")).await.unwrap();
    db.once.reap_once(&mut reaper, 10).await.unwrap();
    let refused = db.once.begin(&mut reaper, &op("k2")).await.unwrap_err();
    assert_eq!(refused.sqlstate().as_deref(), Some("42501"), "the reaper begins nothing");

    let mut auditor = PgConnection::connect_with(&as_role("auditor")).await.unwrap();
    let listed = sqlx::query(db.sql("select * from {}.audit_keys"));
    assert_eq!(auditor.fetch_all(listed).await.unwrap().len(), 3);
    let bodies = sqlx::query(db.sql("select response_body from {}.idempotency_keys"));
    assert!(auditor.execute(bodies).await.is_err(), "the auditor reads no bodies");
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
    conn.ping().await.unwrap(); // an error is reported before the server lets go of its locks
    // `run` looks in vain too, and is told when it writes; not again and again.
    let calls = AtomicU32::new(0);
    let work = async |_: &mut PgConnection| {
        calls.fetch_add(1, Ordering::Relaxed);
        Ok::<_, Failure>(7)
    };
    let told = db.once.run(&pool_of_one(tenant), &op("k"), work).await.unwrap_err();
    let RunError::Protocol(error) = told else { panic!("{told:?}") };
    assert_eq!(error.kind(), pgonce::ErrorKind::Corrupt, "{error}");
    assert!(calls.into_inner() <= 1);
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
