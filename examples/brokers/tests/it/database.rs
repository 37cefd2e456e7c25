//! One temporary PostgreSQL per run, one database per test.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use pgonce::PgOnce;
use pgonce_testing::{Options, Throwaway};
use sqlx::{AssertSqlSafe, ConnectOptions, PgPool};
use tokio::sync::OnceCell;
use tokio::time::Instant;

use crate::process::Process;

/// How long a test waits for something that must happen.
pub const PATIENCE: Duration = Duration::from_secs(45);

/// Accounts with money: many, so that orders seldom wait for each other.
pub const CUSTOMERS: usize = 50;
const BALANCE: i64 = 1_000_000;

#[derive(Debug)]
pub struct Database {
    pub pool: PgPool,
    /// For the consumer's `DATABASE_URL`.
    pub url: String,
    /// The consumers' limit: after this many attempts a message is dead.
    pub attempts: u32,
}

/// The server of all tests. It is never dropped; it stops when this process ends.
async fn server() -> &'static Throwaway {
    static SERVER: OnceCell<Throwaway> = OnceCell::const_new();
    let options = Options::new()
        .fast()
        .setting("max_connections", "200")
        // A killed consumer's session must not wait for a lock while it has others.
        .setting("client_connection_check_interval", "50ms");
    let start = async || Throwaway::start(&options).await.expect("a PostgreSQL to test on");
    SERVER.get_or_init(start).await
}

impl Database {
    /// With accounts that have money, and `poor`, which has none.
    pub async fn new() -> Self {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let name = format!("test_{}", COUNTER.fetch_add(1, Ordering::Relaxed));
        let options = server().await.connect_options();
        let admin = PgPool::connect_with(options.clone()).await.unwrap();
        let create = AssertSqlSafe(format!("create database {name}"));
        sqlx::raw_sql(create).execute(&admin).await.unwrap();
        let options = options.database(&name);
        let pool = PgPool::connect_with(options.clone()).await.unwrap();
        PgOnce::new().migrate(&mut pool.acquire().await.unwrap()).await.unwrap();
        brokers::create_tables(&mut pool.acquire().await.unwrap()).await.unwrap();
        let accounts = format!(
            "insert into account select 'customer-' || n, {BALANCE} from generate_series(1, {CUSTOMERS}) n;
             insert into account values ('poor', 0), ('busy', 1)"
        );
        sqlx::raw_sql(AssertSqlSafe(accounts)).execute(&pool).await.unwrap();
        Self { pool, url: options.to_url_lossy().to_string(), attempts: 5 }
    }

    pub async fn number(&self, sql: &str) -> i64 {
        sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&self.pool).await.expect(sql)
    }

    pub async fn orders(&self) -> i64 {
        self.number("select count(*) from orders").await
    }

    pub async fn done(&self) -> HashSet<String> {
        let ids: Vec<String> =
            sqlx::query_scalar("select message from orders").fetch_all(&self.pool).await.unwrap();
        ids.into_iter().collect()
    }

    /// Waits until the query returns at least `enough`, while the consumer runs.
    pub async fn until(&self, sql: &str, enough: i64, consumer: &mut Process) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let number = self.number(sql).await;
            if number >= enough {
                return;
            }
            consumer.must_run();
            assert!(Instant::now() < deadline, "still {number} of {enough}: {sql}");
        }
    }

    /// Fails unless exactly this many messages took effect, once each, and the balances add up.
    pub async fn exactly(&self, messages: i64) {
        let orders = self.orders().await;
        let distinct = self.number("select count(distinct message) from orders").await;
        assert_eq!((orders, distinct), (messages, messages), "effects, and messages with one");
        let paid = "select (select coalesce(sum(amount), 0) from orders)::bigint";
        let left = "select sum(balance)::bigint from account where customer like 'customer%'";
        let accounts = BALANCE * i64::try_from(CUSTOMERS).unwrap();
        assert_eq!(self.number(paid).await, accounts - self.number(left).await);
    }
}
