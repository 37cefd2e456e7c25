//! One temporary PostgreSQL per run, one schema per test.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use pgonce::{Begin, Claim, Lease, OnLapse, Operation, PgOnce, Policy, SchemaName};
use pgonce_testing::{Options, Throwaway};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};
use tokio::sync::OnceCell;

/// A schema with pgonce, and a table `effect` that counts what the work did.
pub struct TestDb {
    pub once: PgOnce,
    pub pool: PgPool,
    pub schema: String,
    pub options: PgConnectOptions,
    /// Kept so that the server stops when this is dropped.
    _own_server: Option<Throwaway>,
}

/// How long a test waits for something that must happen.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The server of all tests in this process. It is never dropped; it stops when this process ends.
pub async fn server() -> &'static Throwaway {
    static SERVER: OnceCell<Throwaway> = OnceCell::const_new();
    SERVER
        .get_or_init(|| async {
            let options = Options::new()
                .fast()
                .setting("max_connections", "400")
                .setting("max_prepared_transactions", "10");
            Throwaway::start(&options).await.expect("a PostgreSQL to test on")
        })
        .await
}

impl TestDb {
    /// A new database on the test server, for a program that creates its own schemas.
    pub async fn in_new_database() -> Self {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let name = format!("program_{}", COUNTER.fetch_add(1, Ordering::Relaxed));
        let options = server().await.connect_options();
        let mut conn = PgConnection::connect_with(&options).await.unwrap();
        let create = AssertSqlSafe(format!("create database {name}"));
        sqlx::raw_sql(create).execute(&mut conn).await.unwrap();
        Self::open("pgonce", options.database(&name), 2).await
    }

    pub async fn new() -> Self {
        Self::with_connections(10).await
    }

    pub async fn with_connections(connections: u32) -> Self {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let schema = format!("t_{}", COUNTER.fetch_add(1, Ordering::Relaxed));
        Self::create(&schema, server().await.connect_options(), connections).await
    }

    pub async fn create(schema: &str, options: PgConnectOptions, connections: u32) -> Self {
        let db = Self::open(schema, options, connections).await;
        let mut conn = db.conn().await;
        db.once.migrate(&mut conn).await.expect("migrate");
        db.execute(
            "create table {}.effect (id bigint generated always as identity, key text not null)",
        )
        .await;
        db
    }

    /// On its own server, where no other test's transaction keeps dead rows from being pruned.
    pub async fn alone() -> Self {
        let server = Throwaway::start(&Options::new().fast()).await.expect("a PostgreSQL");
        let db = Self::create("alone", server.connect_options(), 10).await;
        Self { _own_server: Some(server), ..db }
    }

    /// An existing schema, from another process or with other options.
    pub async fn open(schema: &str, options: PgConnectOptions, connections: u32) -> Self {
        // By this name, tests find their sessions in pg_stat_activity.
        let options = options.application_name(schema);
        let pool =
            PgPoolOptions::new().max_connections(connections).connect_lazy_with(options.clone());
        let schema_name = SchemaName::new(schema).expect("a schema name");
        let once = PgOnce::new().schema(schema_name);
        Self { once, pool, schema: schema.to_owned(), options, _own_server: None }
    }

    pub async fn conn(&self) -> PgConnection {
        PgConnection::connect_with(&self.options).await.expect("connect")
    }

    /// Replaces `{}` by the schema.
    pub fn sql(&self, template: &str) -> AssertSqlSafe<String> {
        AssertSqlSafe(template.replace("{}", &self.schema))
    }

    /// Runs statements on a new connection.
    pub async fn execute(&self, template: &str) {
        sqlx::raw_sql(self.sql(template)).execute(&mut self.conn().await).await.expect(template);
    }

    /// Queries one value on a new connection.
    pub async fn ask<T>(&self, template: &str) -> T
    where
        T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres> + Send + Unpin,
    {
        sqlx::query_scalar(self.sql(template))
            .fetch_one(&mut self.conn().await)
            .await
            .expect(template)
    }

    /// How many effects there are, for all keys.
    pub async fn effects(&self) -> i64 {
        self.ask("select count(*) from {}.effect").await
    }

    /// Repeats the query until it returns true.
    pub async fn until(&self, template: &str) {
        let mut conn = self.conn().await;
        let asking = async {
            loop {
                let yes: bool = sqlx::query_scalar(self.sql(template))
                    .fetch_one(&mut conn)
                    .await
                    .expect(template);
                if yes {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, asking)
            .await
            .unwrap_or_else(|_| panic!("never: {template}"));
    }

    pub async fn until_waiting(&self, count: u32) {
        self.until(&format!(
            "select count(*) >= {count} from pg_stat_activity
              where application_name = '{}' and wait_event_type = 'Lock'",
            self.schema
        ))
        .await;
    }

    /// Stops the protocol's clock in this schema; `advance` moves it.
    pub async fn stop_clock(&self) {
        self.execute(
            "create table {}.test_clock as select clock_timestamp() as at;
             create or replace function {}._clock() returns timestamptz language sql volatile
               as 'select at from {}.test_clock';
             create or replace function {}._transaction_start() returns timestamptz language sql stable
               as 'select at from {}.test_clock'",
        )
        .await;
    }

    pub async fn advance(&self, by: Duration) {
        self.execute(&format!(
            "update {{}}.test_clock set at = at + {} * interval '1 millisecond'",
            by.as_millis()
        ))
        .await;
    }

    /// Inserts `count` finished keys that have been overdue for at least `seconds`.
    pub async fn plant_overdue(&self, count: u32, seconds: u32) {
        self.execute(&format!(
            "insert into {{}}.idempotency_keys (created_at, expires_at, lease_expires_at, completed_at,
                                                token, attempt, status, scope, key)
             select at - interval '1 day', at, at, at, gen_random_uuid(), 1, 2, 'planted',
                    'overdue ' || {seconds} || ' ' || n
               from generate_series(1, {count}) n,
                    lateral (select {{}}._clock() - make_interval(secs => {seconds} + n) as at) t"
        ))
        .await;
    }

    /// Begins leased and expects to get the claim.
    pub async fn lease(&self, op: &Operation, lease: Duration) -> Claim {
        started(self.once.begin_leased(&self.pool, op, lasting(lease)).await.expect("begin_leased"))
    }

    /// Releases a claim by its token, like its holder.
    pub async fn release(&self, op: &Operation, token: sqlx::types::Uuid) -> sqlx::Result<()> {
        sqlx::query(self.sql("select {}.release($1, $2, $3)"))
            .bind(op.scope().as_str())
            .bind(op.key().as_str())
            .bind(token)
            .execute(&mut self.conn().await)
            .await
            .map(drop)
    }

    /// The key's record now.
    pub async fn seen(&self, op: &Operation) -> pgonce::Record {
        let row = self.once.inspect(&mut self.conn().await, op.scope(), op.key()).await;
        row.expect("inspect").expect("the key is there").record
    }

    /// Completes the operation with this body, in a separate transaction.
    pub async fn complete(&self, op: &Operation, body: &str) {
        let mut tx = self.pool.begin().await.expect("begin");
        let claim = started(self.once.begin(&mut tx, op).await.expect("begin"));
        claim.complete(&mut tx, pgonce::Response::bytes(body)).await.expect("complete");
        tx.commit().await.expect("commit");
    }
}

/// An operation in the tests' scope.
pub fn op(key: &str) -> Operation {
    Operation::new("test/scope", key).expect("a valid operation")
}

pub fn started(begin: Begin) -> Claim {
    match begin {
        Begin::Started(claim) => claim,
        other => panic!("expected the claim, got {other:?}"),
    }
}

/// The answer as a word, so that tests read like the decision table.
pub fn word(begin: &Begin) -> &'static str {
    match begin {
        Begin::Started(_) => "started",
        Begin::Replay(_) => "replay",
        Begin::InProgress(_) => "in progress",
        Begin::Mismatch(_) => "mismatch",
        Begin::Held(_) => "held",
    }
}

/// The usual work: inserts one row into `effect` and returns its id.
pub async fn effect(conn: &mut PgConnection, schema: &str, key: &str) -> sqlx::Result<i64> {
    let sql = format!("insert into {schema}.effect (key) values ($1) returning id");
    sqlx::query_scalar(AssertSqlSafe(sql)).bind(key).fetch_one(conn).await
}

/// `psql` beside the server, or from `PATH` if the package has only the server.
pub async fn psql() -> tokio::process::Command {
    let beside = server().await.bin_dir().join("psql");
    tokio::process::Command::new(if beside.exists() { beside } else { "psql".into() })
}

pub fn waits(bound: Duration) -> Policy {
    Policy::new().wait(bound).unwrap()
}

pub fn kept_for(retention: Duration) -> Policy {
    Policy::new().retention(retention).unwrap()
}

pub fn tried(attempts: u32) -> Policy {
    Policy::new().max_attempts(attempts).unwrap()
}

pub fn on_lapse(on_lapse: OnLapse) -> Policy {
    Policy::new().on_lapse(on_lapse)
}

pub fn lasting(length: Duration) -> Lease {
    Lease::new(length).unwrap()
}
