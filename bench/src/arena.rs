//! Where the scenarios run: a database, with schemas of the bench in it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use pgonce::sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use pgonce::sqlx::{
    self, AssertSqlSafe, ConnectOptions as _, Connection as _, PgConnection, PgPool, SqlSafeStr,
    SqlStr,
};
use pgonce::{PgOnce, SchemaName};
use pgonce_testing::{Database, Options};

use crate::cpu;
use crate::relay::Relay;

pub(crate) struct Arena {
    database: Database,
    prefix: String,
    /// The process id of a temporary server.
    pub(crate) postmaster: Option<u32>,
    pub(crate) server_version: String,
}

/// A schema with the tables of pgonce and of the workload.
#[derive(Clone)]
pub(crate) struct Stage {
    pub(crate) once: PgOnce,
    schema: Arc<str>,
    /// Connects without a relay.
    direct: PgConnectOptions,
    /// The relay that delays, if a delay is asked for.
    slow: Option<Arc<Relay>>,
    /// Whether only the bench writes to this server.
    pub(crate) is_alone: bool,
}

/// PostgreSQL's default durability, with enough room that no checkpoint starts during a run.
const SETTINGS: [(&str, &str); 6] = [
    ("shared_buffers", "1GB"),
    ("max_wal_size", "20GB"),
    ("checkpoint_timeout", "1h"),
    ("wal_keep_size", "1GB"), // the bench reads the WAL
    ("autovacuum", "off"),
    ("max_connections", "400"),
];

const ACQUIRE_MAX: Duration = Duration::from_secs(30);
const CONNECT_MAX: Duration = Duration::from_secs(10);

impl Arena {
    pub(crate) async fn open(named: Option<PgConnectOptions>) -> anyhow::Result<Self> {
        let database = match named {
            Some(options) => Database::from(options),
            None => {
                let options = SETTINGS
                    .iter()
                    .fold(Options::new(), |options, (name, value)| options.setting(*name, *value));
                let started = Database::throwaway(&options).await;
                started?
            }
        };
        let mut conn = connect(&database.connect_options()).await?;
        // Distributions append their own name after a space.
        let version = "select split_part(current_setting('server_version'), ' ', 1)";
        let server_version = sqlx::query_scalar(version).fetch_one(&mut conn).await?;
        let prefix = format!("pgonce_bench_{:08x}", fastrand::u32(..));
        let postmaster = match database.is_throwaway() {
            true => {
                let directory = sqlx::query_scalar::<_, String>("show data_directory");
                cpu::postmaster(&directory.fetch_one(&mut conn).await?)
            }
            false => None,
        };
        Ok(Self { database, prefix, postmaster, server_version })
    }

    pub(crate) fn url(&self) -> String {
        self.database.connect_options().to_url_lossy().into()
    }

    pub(crate) fn is_throwaway(&self) -> bool {
        self.database.is_throwaway()
    }

    /// Creates a schema with this name, replacing an older one. Each round trip to it takes `delay_ms` longer.
    /// Autovacuum is off.
    pub(crate) async fn stage(&self, name: &str, delay_ms: f64) -> anyhow::Result<Stage> {
        let schema = format!("{}_{name}", self.prefix);
        let direct = self.database.connect_options().application_name(&self.prefix);
        let slow = match delay_ms {
            0.0 => None,
            ms => Some(Arc::new(Relay::start(&direct, Duration::from_secs_f64(ms / 1000.0))?)),
        };
        let stage = Stage {
            once: PgOnce::new().schema(SchemaName::new(schema.as_str())?),
            schema: schema.into(),
            direct,
            slow,
            is_alone: self.is_throwaway(),
        };
        let mut conn = stage.conn().await?;
        stage.execute(&mut conn, "drop schema if exists :schema cascade").await?;
        stage.once.migrate(&mut conn).await?;
        stage.execute(&mut conn, include_str!("tables.sql")).await?;
        if self.is_throwaway() {
            stage.execute(&mut conn, "checkpoint").await?;
        }
        Ok(stage)
    }

    /// Drops all schemas. A temporary server removes its databases.
    pub(crate) async fn discard(self) -> anyhow::Result<()> {
        let dropped = match self.is_throwaway() {
            true => Ok(()),
            false => self.drop_schemas().await,
        };
        self.database.stop().await;
        let by_hand = format!("to clean up by hand, drop the schemas {}_*", self.prefix);
        dropped.context(by_hand)
    }

    async fn drop_schemas(&self) -> anyhow::Result<()> {
        let mut conn = connect(&self.database.connect_options()).await?;
        let names = "select nspname::text from pg_namespace where starts_with(nspname, $1)";
        let names = sqlx::query_scalar::<_, String>(names).bind(format!("{}_", self.prefix));
        for name in names.fetch_all(&mut conn).await? {
            let drop = format!("set lock_timeout = '10s'; drop schema {name} cascade");
            sqlx::raw_sql(AssertSqlSafe(drop)).execute(&mut conn).await?;
        }
        Ok(())
    }
}

impl Stage {
    /// An existing stage, in another process.
    pub(crate) fn over(schema: &str, direct: PgConnectOptions) -> anyhow::Result<Self> {
        let once = PgOnce::new().schema(SchemaName::new(schema)?);
        Ok(Self { once, schema: schema.into(), direct, slow: None, is_alone: false })
    }

    pub(crate) fn schema(&self) -> &str {
        &self.schema
    }

    /// A second client of this stage, as in another process: the two share only the database.
    pub(crate) fn apart(&self) -> anyhow::Result<Self> {
        let once = PgOnce::new().schema(SchemaName::new(&*self.schema)?);
        Ok(Self { once, ..self.clone() })
    }

    /// The workload's pool, through the delay if there is one.
    pub(crate) async fn pool(&self, connections: u16) -> anyhow::Result<PgPool> {
        let slow = self.slow.as_ref().map(|relay| relay.options());
        self.pool_over(slow.unwrap_or_else(|| self.direct.clone()), connections).await
    }

    /// A pool with one connection through a counting relay. Keep the relay while you use the pool.
    pub(crate) async fn counted(&self) -> anyhow::Result<(Relay, PgPool)> {
        let relay = Relay::start(&self.direct, Duration::ZERO)?;
        let pool = self.pool_over(relay.options(), 1).await?;
        Ok((relay, pool))
    }

    async fn pool_over(
        &self,
        options: PgConnectOptions,
        connections: u16,
    ) -> anyhow::Result<PgPool> {
        let pool = PgPoolOptions::new()
            .max_connections(connections.into())
            .min_connections(connections.into())
            .acquire_timeout(ACQUIRE_MAX)
            .test_before_acquire(false);
        Ok(pool.connect_with(options).await?)
    }

    /// A connection without a relay.
    pub(crate) async fn conn(&self) -> anyhow::Result<PgConnection> {
        connect(&self.direct).await
    }

    /// Fills this stage's schema into a statement; the name needs no escaping.
    pub(crate) fn sql(&self, template: &str) -> SqlStr {
        let text = template.replace(":schema", &self.schema);
        AssertSqlSafe(Arc::<str>::from(text)).into_sql_str()
    }

    pub(crate) async fn execute(
        &self,
        conn: &mut PgConnection,
        template: &str,
    ) -> anyhow::Result<()> {
        sqlx::raw_sql(self.sql(template)).execute(conn).await?;
        Ok(())
    }

    /// One value, on a new connection.
    pub(crate) async fn ask<T>(&self, template: &str) -> anyhow::Result<T>
    where
        T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres> + Send + Unpin,
    {
        let mut conn = self.conn().await?;
        Ok(sqlx::query_scalar(self.sql(template)).fetch_one(&mut conn).await?)
    }

    /// Writes dirty pages now, so that it does not happen during a run.
    pub(crate) async fn checkpoint(&self) -> anyhow::Result<()> {
        match self.is_alone {
            true => self.execute(&mut self.conn().await?, "checkpoint").await,
            false => Ok(()),
        }
    }
}

async fn connect(options: &PgConnectOptions) -> anyhow::Result<PgConnection> {
    let connected = tokio::time::timeout(CONNECT_MAX, PgConnection::connect_with(options)).await;
    connected
        .map_err(anyhow::Error::from)
        .and_then(|done| Ok(done?))
        .context("cannot connect to the database")
}
