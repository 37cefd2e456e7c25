//! The page's own connections: few, and none of their statements runs for long.

use std::time::Duration;

use pgonce::sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use pgonce::sqlx::{self, PgConnection, PgPool, Postgres, Transaction};

use crate::problem::Problem;

const CONNECTIONS_MAX: u32 = 3;
/// For a server that does not answer, and for visitors beyond the connections.
const CONNECT_MAX: Duration = Duration::from_secs(3);
const IDLE_MAX: Duration = Duration::from_secs(60);

#[derive(Clone)]
pub(crate) struct Database {
    pool: PgPool,
    statement_timeout: Duration,
}

impl Database {
    pub(crate) fn new(options: PgConnectOptions, statement_timeout: Duration) -> Self {
        let pool = PgPoolOptions::new()
            .max_connections(CONNECTIONS_MAX)
            .acquire_timeout(CONNECT_MAX)
            .idle_timeout(IDLE_MAX)
            .connect_lazy_with(options.application_name("pgonce dashboard"));
        Self { pool, statement_timeout }
    }

    pub(crate) fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// A transaction to read in. It ends when it is dropped. The timeout is a setting of the transaction, because
    /// behind a pooler those of a session are others'.
    pub(crate) async fn read(&self) -> Result<Transaction<'static, Postgres>, Problem> {
        let mut tx = self.pool.begin().await.map_err(Problem::from)?;
        sqlx::query("select pg_catalog.set_config('statement_timeout', $1, true)")
            .bind(format!("{}ms", self.statement_timeout.as_millis()))
            .execute(&mut *tx)
            .await?;
        Ok(tx)
    }

    /// A transaction for an action of this visitor.
    pub(crate) async fn act(&self, actor: &str) -> Result<Transaction<'static, Postgres>, Problem> {
        let mut tx = self.read().await?;
        set_actor(&mut tx, actor).await?;
        Ok(tx)
    }
}

/// The audit trail shows this name beside the role.
async fn set_actor(conn: &mut PgConnection, actor: &str) -> Result<(), Problem> {
    sqlx::query("select pg_catalog.set_config('pgonce.actor', $1, true)")
        .bind(actor)
        .execute(conn)
        .await?;
    Ok(())
}
