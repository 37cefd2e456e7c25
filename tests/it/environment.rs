//! What `check` finds between a service and its server. Tests with real poolers are in `tests/proxies`.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use pgonce::{Error, ErrorKind, PgOnce};
use sqlx::postgres::PgPoolOptions;
use sqlx::{Connection, Executor, PgConnection, PgPool};

use crate::support::db::TestDb;

fn pool_with(db: &TestDb, settings: &[(&str, &str)]) -> PgPool {
    PgPool::connect_lazy_with(db.options.clone().options(settings.iter().copied()))
}

async fn refusal(db: &TestDb, pool: &PgPool) -> Error {
    let error = db.once.check(pool).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Environment, "{error:?}");
    assert!(!error.is_retryable());
    error
}

const DEFERRABLE: (&str, &str) = ("default_transaction_deferrable", "on");
const READ_ONLY: (&str, &str) = ("default_transaction_read_only", "on");
const SERIALIZABLE: (&str, &str) = ("default_transaction_isolation", "serializable");

#[tokio::test]
async fn defaults_of_the_session_that_break_a_promise_are_named() {
    let db = TestDb::new().await;
    for harmless in [&[][..], &[READ_ONLY], &[SERIALIZABLE]] {
        db.once.check(&pool_with(&db, harmless)).await.unwrap();
    }
    let says = refusal(&db, &pool_with(&db, &[DEFERRABLE])).await.to_string();
    assert!(says.starts_with("default_transaction_deferrable is on"), "{says}");
    let says = refusal(&db, &pool_with(&db, &[SERIALIZABLE, READ_ONLY])).await.to_string();
    assert!(says.starts_with("default_transaction_isolation is serializable"), "{says}");
    let all = pool_with(&db, &[SERIALIZABLE, READ_ONLY, DEFERRABLE]);
    let says = refusal(&db, &all).await.to_string();
    let named = ["deferrable", "isolation", "read_only"];
    assert!(
        named.iter().all(|name| says.contains(&format!("default_transaction_{name}"))),
        "{says}"
    );
}

/// A dump can be restored into a database that `migrate` would have refused.
#[tokio::test]
async fn a_database_that_does_not_tell_characters_is_named() {
    let options = crate::support::db::server().await.connect_options();
    let mut conn = PgConnection::connect_with(&options).await.unwrap();
    sqlx::raw_sql("create database restored").execute(&mut conn).await.unwrap();
    let options = options.database("restored");
    let mut inside = PgConnection::connect_with(&options).await.unwrap();
    let once = PgOnce::new();
    once.migrate(&mut inside).await.unwrap();
    inside.close().await.unwrap();
    let change = "update pg_database set encoding = 0 where datname = 'restored'";
    sqlx::raw_sql(change).execute(&mut conn).await.unwrap();
    let error = once.check(&PgPool::connect_lazy_with(options)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Environment, "{error:?}");
    assert!(error.to_string().contains("SQL_ASCII"), "{error}");
}

// What a pooler leaves behind: the server's session uses the driver's name for another client's statement.
#[tokio::test]
async fn a_prepared_statement_that_is_another_clients_is_noticed() {
    let db = TestDb::new().await;
    let pool = PgPoolOptions::new().max_connections(2).after_connect(|conn, _| {
        Box::pin(async move {
            conn.execute(sqlx::raw_sql("prepare sqlx_s_1 as select 2")).await.map(drop)
        })
    });
    let says = refusal(&db, &pool.connect_lazy_with(db.options.clone())).await.to_string();
    assert!(says.contains("PgBouncer 1.21 or later") && says.contains("session mode"), "{says}");
}

#[tokio::test]
async fn checks_at_once_do_not_wait_for_each_others_connections() {
    let db = TestDb::new().await;
    for connections in [1, 2] {
        let pool = PgPoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(Duration::from_secs(5))
            .connect_lazy_with(db.options.clone());
        let mut checks = tokio::task::JoinSet::new();
        for _ in 0..16 {
            let (once, pool) = (db.once.clone(), pool.clone());
            checks.spawn(async move { once.check(&pool).await });
        }
        while let Some(checked) = checks.join_next().await {
            checked.unwrap().unwrap();
        }
    }
}

#[tokio::test]
async fn a_check_that_is_dropped_leaves_no_transaction_open() {
    let db = TestDb::with_connections(2).await;
    for polls in 0.. {
        let ended = polled(polls, db.once.check(&db.pool)).await;
        db.until(
            "select not exists (select from pg_stat_activity
                where application_name = '{}' and state like 'idle in transaction%')",
        )
        .await;
        if let Some(checked) = ended {
            checked.unwrap();
            assert!(polls > 1, "it was dropped half way");
            break;
        }
    }
}

/// Polls a future at most this often and returns its output; otherwise drops it.
async fn polled<T>(polls: u32, future: impl Future<Output = T>) -> Option<T> {
    let (mut future, mut left) = (pin!(future), polls);
    poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        future.as_mut().poll(context).map(Some)
    })
    .await
}
