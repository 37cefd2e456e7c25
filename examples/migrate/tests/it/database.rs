//! One temporary PostgreSQL per run, one database per test.

use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use pgonce_testing::{Options, Throwaway};
use sqlx::{AssertSqlSafe, ConnectOptions, PgPool, Postgres, Transaction};
use tokio::process::Command;
use tokio::sync::OnceCell;
use tokio::time::Instant;

/// How long a test waits for something that must happen.
pub const PATIENCE: Duration = Duration::from_secs(45);

#[derive(Debug)]
pub struct Database {
    pub pool: PgPool,
    pub url: String,
}

/// The server of all tests. It is never dropped; it stops when this process ends.
async fn server() -> &'static Throwaway {
    static SERVER: OnceCell<Throwaway> = OnceCell::const_new();
    let options = Options::new()
        .fast()
        .setting("max_connections", "400")
        // A killed program's session must not wait for a lock while it has others.
        .setting("client_connection_check_interval", "50ms");
    let start = async || Throwaway::start(&options).await.expect("a PostgreSQL to test on");
    SERVER.get_or_init(start).await
}

impl Database {
    /// With the tables of a guide's program, and pgonce's, which `pgonce migrate` makes.
    pub async fn new(schema: &'static str) -> Self {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let name = format!("test_{}", COUNTER.fetch_add(1, Ordering::Relaxed));
        let options = server().await.connect_options();
        let admin = PgPool::connect_with(options.clone()).await.unwrap();
        let create = AssertSqlSafe(format!("create database {name}"));
        sqlx::raw_sql(create).execute(&admin).await.unwrap();
        let options = options.database(&name);
        let pool = PgPool::connect_with(options.clone()).await.unwrap();
        sqlx::raw_sql(schema).execute(&pool).await.unwrap();
        let db = Self { pool, url: options.to_url_lossy().to_string() };
        db.pgonce(&["migrate"]).await;
        db
    }

    /// Runs the program `pgonce` of this repository, and returns what it prints.
    pub async fn pgonce(&self, arguments: &[&str]) -> String {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.toml");
        let mut command = Command::new(env!("CARGO"));
        command.args(["run", "--quiet", "--locked", "-p", "pgonce-cli", "--manifest-path", root]);
        command.arg("--").args(arguments).env("DATABASE_URL", &self.url);
        // These are about this test's package. With them, cargo would build again what it has built.
        let ours = std::env::vars().filter(|(name, _)| name.starts_with("CARGO_"));
        for (name, _) in ours.filter(|(name, _)| name != "CARGO_TARGET_DIR" && name != "CARGO_HOME")
        {
            command.env_remove(name);
        }
        let output = command.stderr(Stdio::inherit()).output().await.unwrap();
        assert!(output.status.success(), "pgonce {arguments:?}: {}", output.status);
        String::from_utf8(output.stdout).unwrap()
    }

    pub async fn number(&self, sql: &str) -> i64 {
        sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&self.pool).await.expect(sql)
    }

    pub async fn execute(&self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&self.pool).await.expect(sql);
    }

    /// A guide's check of the names: the keys that pgonce has, and those that are not in the query that moves rows.
    pub async fn check_names(&self, guide: &str, moved: &str) -> (i64, i64) {
        let check = guide.split("psql $DATABASE_URL -c \"select count(*) as known").nth(1).unwrap();
        let check = check.split('"').next().unwrap().replace("$(cat move.sql)", moved);
        let check = AssertSqlSafe(format!("select count(*){check}"));
        let row: (i64, i64, Option<String>) =
            sqlx::query_as(check).fetch_one(&self.pool).await.unwrap();
        (row.0, row.1)
    }

    pub async fn payments(&self) -> i64 {
        self.number("select count(*) from payment").await
    }

    /// Waits until the query returns at least `enough`.
    pub async fn until(&self, sql: &str, enough: i64) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let number = self.number(sql).await;
            if number >= enough {
                return;
            }
            assert!(Instant::now() < deadline, "still {number} of {enough}: {sql}");
        }
    }

    /// Runs a statement that takes locks, and keeps them until the transaction is dropped or rolled back.
    pub async fn hold(&self, sql: &str) -> Transaction<'static, Postgres> {
        let mut tx = self.pool.begin().await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *tx).await.expect(sql);
        tx
    }

    /// Keeps programs from inserting payments. They can read.
    pub async fn hold_payments(&self) -> Transaction<'static, Postgres> {
        self.hold("lock table payment in share row exclusive mode").await
    }

    /// Waits until this many sessions wait for locks.
    pub async fn until_waiting(&self, sessions: i64) {
        let waiting = "select count(*) from pg_stat_activity
                        where datname = current_database() and wait_event_type = 'Lock'";
        self.until(waiting, sessions).await;
    }

    /// Waits until the server has given up the statements of a killed program that wait for locks.
    pub async fn until_none_waits(&self) {
        let none = "select (count(*) = 0)::int::bigint from pg_stat_activity
                     where datname = current_database() and wait_event_type = 'Lock'";
        self.until(none, 1).await;
    }
}
