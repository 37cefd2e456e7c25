//! One temporary PostgreSQL for all tests, one database per test and isolation level.

use std::time::Duration;

use pgonce::PgOnce;
use pgonce_testing::Throwaway;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, PgPool, PgTransaction};
use stacks::{Paid, Request, answered};
use tokio::time::Instant;

use crate::proxy::Proxy;
use crate::stack::Stack;

/// How long a test waits for something that must happen.
pub const PATIENCE: Duration = Duration::from_secs(45);

/// Fewer than callers.
pub const CONNECTIONS: u32 = 8;

/// What alice has at first.
pub const BALANCE: i64 = 1_000;

pub const LEVELS: [&str; 3] = ["read committed", "repeatable read", "serializable"];

#[derive(Debug)]
pub struct Database {
    /// For the test; its sessions are not the stack's.
    pub pool: PgPool,
    options: PgConnectOptions,
}

impl Database {
    /// A database with pgonce, whose transactions have this isolation level, and alice's account.
    pub async fn new(level: &str) -> Self {
        let server = Throwaway::shared().await.expect("a PostgreSQL to test on");
        let options = server.new_database().await.unwrap();
        let pool = PgPool::connect_with(options.clone().application_name("test")).await.unwrap();
        let name = options.get_database().unwrap();
        let db = Self { pool, options: options.clone() };
        PgOnce::new().migrate(&mut db.pool.acquire().await.unwrap()).await.unwrap();
        db.execute("create table account (customer text primary key, balance bigint not null)")
            .await;
        db.execute(&format!("insert into account values ('alice', {BALANCE})")).await;
        // For sessions that begin later: the stack's.
        db.execute(&format!("alter database {name} set default_transaction_isolation = '{level}'"))
            .await;
        db
    }

    /// Puts a proxy between the stack and the server.
    pub async fn behind_proxy(&mut self) -> Proxy {
        let options = &self.options;
        let (socket, port) = (options.get_socket().unwrap(), options.get_port());
        let (port, proxy) = Proxy::start(socket.join(format!(".s.PGSQL.{port}"))).await;
        self.options = PgConnectOptions::new_without_pgpass()
            .host("127.0.0.1")
            .port(port)
            .username(options.get_username())
            .database(options.get_database().unwrap());
        proxy
    }

    pub fn url(&self) -> String {
        self.options.to_url_lossy().to_string()
    }

    /// The address in the form that libpq has, too.
    pub fn key_values(&self) -> String {
        let options = &self.options;
        let socket = options.get_socket().map(|socket| socket.display().to_string());
        let host = socket.as_deref().unwrap_or(options.get_host());
        let (port, user) = (options.get_port(), options.get_username());
        format!("host={host} port={port} user={user} dbname={}", options.get_database().unwrap())
    }

    pub async fn execute(&self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&self.pool).await.expect(sql);
    }

    pub async fn number(&self, sql: &str) -> i64 {
        sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&self.pool).await.expect(sql)
    }

    /// From now on each COMMIT of a payment waits until the returned transaction ends.
    pub async fn hold_commits(&self) -> PgTransaction<'static> {
        self.execute(
            "create function wait() returns trigger language plpgsql as
             'begin perform pg_advisory_xact_lock_shared(1); return null; end';
             create constraint trigger wait after update on account deferrable initially deferred
             for each row execute function wait()",
        )
        .await;
        let mut tx = self.pool.begin().await.unwrap();
        sqlx::query("select pg_advisory_xact_lock(1)").execute(&mut *tx).await.unwrap();
        tx
    }

    /// Waits until the query returns `expected`.
    pub async fn until(&self, sql: &str, expected: i64) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let number = self.number(sql).await;
            if number == expected {
                return;
            }
            assert!(Instant::now() < deadline, "still {number}, not {expected}: {sql}");
        }
    }

    /// Waits until a session of the stack waits for a lock.
    pub async fn until_blocked(&self) {
        let sql = "select count(*) from pg_stat_activity
                    where datname = current_database() and application_name <> 'test' and wait_event_type = 'Lock'";
        self.until(sql, 1).await;
    }

    /// Waits until no session of the stack has an open transaction.
    pub async fn until_idle(&self) {
        let sql = "select count(*) from pg_stat_activity
                    where datname = current_database() and application_name <> 'test' and backend_type = 'client backend'
                      and state <> 'idle'";
        self.until(sql, 0).await;
    }

    /// Fails unless this many payments of one took effect, and there are this many keys, all finished.
    pub async fn has(&self, payments: i64, keys: i64) {
        let paid =
            BALANCE - self.number("select balance from account where customer = 'alice'").await;
        let finished = "select count(*) from pgonce.keys where status in ('completed', 'failed')";
        let finished = self.number(finished).await;
        let all = self.number("select count(*) from pgonce.idempotency_keys").await;
        assert_eq!((paid, finished, all), (payments, keys, keys), "payments, finished keys, keys");
    }
}

/// A request for alice to pay this much.
pub fn request(amount: i64) -> Request {
    Request { customer: "alice".to_owned(), amount }
}

/// Pays one, with as many tries as are needed.
pub async fn pay_one(stack: &impl Stack, key: &str) -> Paid {
    let request = request(1);
    answered(PATIENCE, || stack.pay(key, &request)).await
}
