//! The server behind the proxy, and direct queries to it.

use pgonce::{Operation, PgOnce};
use pgonce_testing::{Options, Throwaway};
use sqlx::{AssertSqlSafe, PgConnection, PgPool};

use crate::process::PATIENCE;

/// A server with a table that counts what the work did.
#[derive(Debug)]
pub struct Stage {
    pub once: PgOnce,
    pub server: Throwaway,
    /// Connects to the server without the proxy.
    pub direct: PgPool,
}

pub fn op(key: &str) -> Operation {
    Operation::new("test/scope", key).expect("a valid operation")
}

/// The work: inserts one row.
pub async fn effect(conn: &mut PgConnection, key: &str) -> sqlx::Result<String> {
    sqlx::query_scalar("insert into effect (key) values ($1) returning key")
        .bind(key)
        .fetch_one(conn)
        .await
}

impl Stage {
    pub async fn new(settings: &[(&str, &str)]) -> Self {
        let fast = Options::new().fast().setting("max_connections", "200");
        let set = |options: Options, (name, value): &(&str, &str)| options.setting(*name, *value);
        let server =
            Throwaway::start(&settings.iter().fold(fast, set)).await.expect("a PostgreSQL");
        let direct = PgPool::connect_with(server.connect_options()).await.unwrap();
        sqlx::raw_sql("create table effect (key text not null)").execute(&direct).await.unwrap();
        Self { once: PgOnce::new(), server, direct }
    }

    /// With pgonce's schema.
    pub async fn ready(settings: &[(&str, &str)]) -> Self {
        let stage = Self::new(settings).await;
        stage.once.migrate(&mut stage.direct.acquire().await.unwrap()).await.unwrap();
        stage
    }

    pub async fn ask<T>(&self, sql: &str) -> T
    where
        T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres> + Send + Unpin,
    {
        sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&self.direct).await.expect(sql)
    }

    pub async fn execute(&self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&self.direct).await.expect(sql);
    }

    pub async fn until(&self, sql: &str) {
        let asking = async { while !self.ask::<bool>(sql).await {} };
        tokio::time::timeout(PATIENCE, asking).await.unwrap_or_else(|_| panic!("never: {sql}"));
    }

    /// How often the work of this key took effect.
    pub async fn effects(&self, key: &str) -> i64 {
        self.ask(&format!("select count(*) from effect where key = '{key}'")).await
    }
}
