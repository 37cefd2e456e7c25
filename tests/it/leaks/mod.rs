//! Pools whose connections come back with a transaction that the driver does not know, or without its prepared
//! statements. Everything that a call reports as done is committed.

mod calls;
mod lost_statements;
mod run;
mod runs;
mod web;

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;

use crate::support::db::{PATIENCE, TestDb};

/// How a connection is left, and the SQL for that. It writes `left behind` if it can; that row is never committed.
pub const LEAKS: [(&str, &str); 6] = [
    ("unused", "begin"),
    ("used", "begin; insert into {}.effect (key) values ('left behind')"),
    ("aborted", "begin; select 1 / 0"),
    ("old snapshot", "begin isolation level repeatable read; select 1"),
    ("savepoint", "begin; savepoint x"),
    ("used savepoint", "begin; savepoint x; insert into {}.effect (key) values ('left behind')"),
];

/// A pool with one connection, which is not tested before use.
pub fn pool(db: &TestDb) -> PgPool {
    PgPoolOptions::new()
        .max_connections(1)
        .test_before_acquire(false)
        .acquire_timeout(PATIENCE)
        .connect_lazy_with(db.options.clone())
}

/// Leaves the pool's connection in this state. (An error leaves it aborted.)
pub async fn leave(db: &TestDb, pool: &PgPool, leak: &str) {
    let mut conn = pool.acquire().await.unwrap();
    let _ = sqlx::raw_sql(db.sql(leak)).execute(&mut *conn).await;
    conn.return_to_pool().await;
}

/// No connection has an open transaction, and nothing from one was committed.
pub async fn nothing_is_left(db: &TestDb, context: &str) {
    crate::crash::nothing_is_stuck(db).await;
    let left = "select count(*) from {}.effect where key = 'left behind'";
    assert_eq!(db.ask::<i64>(left).await, 0, "{context}");
}

/// Like an ordinary handler whose client hangs up.
pub async fn drop_begin(db: &TestDb, pool: &PgPool) {
    loop {
        pool.acquire().await.unwrap().return_to_pool().await; // connected, so that BEGIN is sent at once
        let mut begin = pin!(pool.begin());
        if poll_fn(|cx| Poll::Ready(begin.as_mut().poll(cx).is_pending())).await {
            break;
        } // or the answer was too fast
    }
    let open = "select count(*) = 1 from pg_stat_activity
                 where application_name = '{}' and state = 'idle in transaction'";
    db.until(&open.replace("{}", &db.schema)).await;
}
