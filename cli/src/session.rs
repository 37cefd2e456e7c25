//! Options of every command, and the connection that most commands need.

use std::str::FromStr;
use std::time::Duration;

use pgonce::sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use pgonce::sqlx::{Connection, PgConnection, PgPool};
use pgonce::{PgOnce, SchemaName};

use crate::exit::{CliError, innermost};

#[derive(clap::Args)]
#[command(next_help_heading = "Options of every command")]
pub(crate) struct Global {
    /// The database, for example postgres://user@host/name
    // Its value may contain a password, so the help must not show it.
    #[arg(long, global = true, value_name = "URL", env = "DATABASE_URL", hide_env_values = true)]
    database_url: Option<String>,
    /// The schema that contains pgonce's tables
    #[arg(long, global = true, value_name = "NAME", env = "PGONCE_SCHEMA", hide_env_values = true)]
    #[arg(default_value = "pgonce")]
    schema: String,
    /// Print JSON, errors too: one object or array
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

pub(crate) struct Session {
    pub(crate) once: PgOnce,
    pub(crate) schema: String,
    pub(crate) conn: PgConnection,
    pub(crate) json: bool,
}

/// A server that does not answer for this long counts as unreachable.
const CONNECT_MAX: Duration = Duration::from_secs(10);

impl Global {
    /// The given database, if any. May contain a password.
    pub(crate) fn database_url(&self) -> Option<&str> {
        self.database_url.as_deref().filter(|url| !url.is_empty())
    }

    pub(crate) fn connect_options(&self) -> Result<Option<PgConnectOptions>, CliError> {
        let url = self.database_url();
        // The parser's message does not quote the URL.
        let parsed = url.map(PgConnectOptions::from_str).transpose();
        parsed.map_err(|error| {
            CliError::usage(format!("the database URL is not valid: {}", innermost(&error)))
        })
    }

    pub(crate) fn once(&self) -> Result<PgOnce, CliError> {
        Ok(PgOnce::new().schema(SchemaName::new(self.schema.as_str())?))
    }

    pub(crate) fn schema(&self) -> &str {
        &self.schema
    }

    pub(crate) async fn session(&self) -> Result<Session, CliError> {
        let once = self.once()?;
        let conn = connect(&self.database()?).await?;
        Ok(Session { once, schema: self.schema.clone(), conn, json: self.json })
    }

    /// Two connections, which `check` needs to test a pooler.
    pub(crate) async fn pool(&self) -> Result<PgPool, CliError> {
        let options = self.database()?;
        // A pool would retry, and then not say what is wrong.
        let conn = connect(&options).await?;
        conn.close().await?;
        Ok(PgPoolOptions::new().max_connections(2).connect_lazy_with(options))
    }

    pub(crate) fn database(&self) -> Result<PgConnectOptions, CliError> {
        self.connect_options()?
            .ok_or_else(|| CliError::usage("no database: set DATABASE_URL or pass --database-url"))
    }
}

pub(crate) async fn connect(options: &PgConnectOptions) -> Result<PgConnection, CliError> {
    match tokio::time::timeout(CONNECT_MAX, PgConnection::connect_with(options)).await {
        Ok(connected) => connected.map_err(|error| CliError::cannot_connect(options, &error)),
        Err(_) => Err(CliError::cannot_connect(
            options,
            &std::io::Error::from(std::io::ErrorKind::TimedOut).into(),
        )),
    }
}
