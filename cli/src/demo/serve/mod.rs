//! `pgonce demo --serve`: a page on which anyone loses answers, kills the server and reads the books.
//!
//! ```text
//! browser ── front.rs, loss.rs ──── wire.rs ──── server.rs, a child process ── pgonce ── PostgreSQL
//!            loses answers           TCP          is killed by process.rs     └─ lock.rs ── Redis or a row
//! ```

mod front;
mod ledger;
mod lock;
mod loss;
mod process;
mod redis_server;
pub(crate) mod server;
mod wire;

use std::net::Ipv4Addr;
use std::sync::Arc;

use axum::Router;
use pgonce::sqlx::ConnectOptions;
use pgonce::{PgOnce, SchemaName};
use pgonce_dashboard::{Access, Dashboard, Visitor};
use pgonce_testing::Database;
use serde::Deserialize;
use serde_json::json;
use tokio::net::TcpListener;

use self::front::{Front, router};
use self::ledger::{Ledger, PAYMENTS_MAX};
use self::lock::Lock;
use self::process::{Environment, Process};
use self::redis_server::RedisServer;
use super::books::Books;
use crate::exit::CliError;
use crate::output;
use crate::session::Global;

/// The scope of all keys: a tenant and the operation.
const SCOPE: [&str; 2] = ["shop", "payments.create"];

/// What the page sends each payment to, as its path says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Service {
    Once,
    /// A lock that expires.
    Lock,
    LockForever,
}

impl Service {
    /// On the payment server.
    fn path(self) -> &'static str {
        match self {
            Self::Once => "/once",
            Self::Lock => "/lock",
            Self::LockForever => "/lock-forever",
        }
    }

    /// In the books, which do not tell the locks apart.
    fn name(self) -> &'static str {
        match self {
            Self::Once => "once",
            Self::Lock | Self::LockForever => "lock",
        }
    }
}

/// Serves the page until it is dropped. Then all processes end.
pub(super) async fn serve(
    global: &Global,
    database: &Database,
    books: &Books,
    redis_url: Option<&str>,
    port: u16,
) -> Result<(), CliError> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await;
    let taken = |error| CliError::failed("port", format!("cannot listen on port {port}: {error}"));
    let listener = listener.map_err(taken)?;
    let port = listener.local_addr().map_err(taken)?.port();

    books.migrate().await?;
    let ledger = Ledger::open(books).await?;
    // Dropped last, after the payment server that uses it.
    let own_redis = if redis_url.is_none() { RedisServer::start().await } else { None };
    let redis_url = redis_url.map(str::to_owned).or(own_redis.as_ref().map(RedisServer::url));
    let lock = match &redis_url {
        Some(url) => Lock::redis(url, books.schema()).await?,
        None => Lock::row(ledger.pool(), books.schema()),
    };
    let lock_name = lock.name().await.map_err(|error| CliError::failed("demo", error))?;
    let about = json!({
        "postgres": books.server_version,
        "throwaway": database.is_throwaway(),
        "lock": lock_name,
        "payments_max": PAYMENTS_MAX,
    });
    let process = Arc::new(Process::new(Environment {
        database_url: match global.database_url() {
            Some(url) => url.to_owned(),
            None => database.connect_options().to_url_lossy().to_string(),
        },
        schema: books.schema().to_owned(),
        redis_url,
    }));
    let front = Front::new(ledger, lock, Arc::clone(&process), about, port);
    let operator = operators_page(database, books)?;
    let url = format!("http://127.0.0.1:{port}/");
    match global.json {
        true => output::json(&json!({ "url": url }))?,
        false => output::line(format!("Open {url} in a browser. Ctrl-C stops the demo."))?,
    }
    tokio::select! {
        error = process.keep_running() => Err(error),
        never = wire::listen(listener, router(front, operator)) => match never {},
    }
}

/// The operator's page over the same keys. It lives in this process, so a kill of the payment server does not end it.
/// Everything is allowed: the keys are the demo's, and only this machine reaches them.
fn operators_page(database: &Database, books: &Books) -> Result<Router, CliError> {
    let once = PgOnce::new().schema(SchemaName::new(books.schema())?);
    let visitor = Visitor::new("visitor", Access::All);
    let options = database.connect_options().clone();
    Ok(Dashboard::new(options, &once, move |_| visitor.clone()).router())
}
