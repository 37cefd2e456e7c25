//! Pools whose connections come back with a transaction that the driver does not know of, or without the statements
//! that it has prepared. Whatever a call says is done, is committed.

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

/// How a connection is left, and what leaves it so. It writes `left behind` where it can: that is never committed.
pub const LEAKS: [(&str, &str); 6] = [
    ("unused", "begin"),
    ("used", "begin; insert into {}.effect (key) values ('left behind')"),
    ("aborted", "begin; select 1 / 0"),
    ("old snapshot", "begin isolation level repeatable read; select 1"),
    ("savepoint", "begin; savepoint x"),
    ("used savepoint", "begin; savepoint x; insert into {}.effect (key) values ('left behind')"),
];

/// A pool of one connection, which does not look at it before it lends it.
pub fn pool(db: &TestDb) -> PgPool {
    PgPoolOptions::new()
        .max_connections(1)
        .test_before_acquire(false)
        .acquire_timeout(PATIENCE)
        .connect_lazy_with(db.options.clone())
}

/// Leaves the pool's connection so. (An error is what leaves it aborted.)
pub async fn leave(db: &TestDb, pool: &PgPool, leak: &str) {
    let mut conn = pool.acquire().await.unwrap();
    let _ = sqlx::raw_sql(db.sql(leak)).execute(&mut *conn).await;
    conn.return_to_pool().await;
}

/// Nothing is left open on any connection, and nothing that was left open is committed.
pub async fn nothing_is_left(db: &TestDb, context: &str) {
    crate::crash::nothing_is_stuck(db).await;
    let left = "select count(*) from {}.effect where key = 'left behind'";
    assert_eq!(db.ask::<i64>(left).await, 0, "{context}");
}

/// As an ordinary handler does whose client hangs up.
pub async fn drop_begin(db: &TestDb, pool: &PgPool) {
    loop {
        pool.acquire().await.unwrap().return_to_pool().await; // connected, so that BEGIN is sent at once
        let mut begin = pin!(pool.begin());
        if poll_fn(|cx| Poll::Ready(begin.as_mut().poll(cx).is_pending())).await {
            break;
        } // or the answer was too quick
    }
    let open = "select count(*) = 1 from pg_stat_activity
                 where application_name = '{}' and state = 'idle in transaction'";
    db.until(&open.replace("{}", &db.schema)).await;
}
