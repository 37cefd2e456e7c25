//! A temporary, real PostgreSQL for demos, examples and tests.
//!
//! [`Throwaway::start`] creates a cluster in a temporary directory, with the PostgreSQL programs on the machine or with
//! downloaded ones. It listens only on a Unix socket in that directory.
//!
//! Server and directory are removed when the [`Throwaway`] is dropped, and also when the process ends in any other way:
//! panic, Ctrl-C, `process::exit`, `kill -9`. A small `sh` watches the server, and cleans up as soon as the pipe to
//! this process breaks.
//!
//! [`Clock`] moves the time that pgonce sees in a test's database. `ExactlyOnce` (feature `exactly-once`) calls a service
//! as bad networks do, and counts its effects.
//!
//! ```no_run
//! use sqlx::PgPool;
//! use pgonce_testing::{Options, Throwaway};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let server = Throwaway::start(&Options::new()).await?;
//! let pool = PgPool::connect_with(server.connect_options()).await?;
//! // ...
//! pool.close().await;
//! server.stop().await;
//! # Ok(())
//! # }
//! ```

mod binaries;
mod clock;
mod database;
#[cfg(feature = "download")]
mod download;
mod error;
#[cfg(feature = "exactly-once")]
mod exactly_once;
#[cfg(not(unix))]
#[path = "server_unsupported.rs"]
mod server;
#[cfg(unix)]
mod server;
mod shared;
#[cfg(unix)]
mod user;

use std::path::{Path, PathBuf};

use sqlx::postgres::{PgConnectOptions, PgSslMode};

pub use clock::Clock;
pub use database::Database;
pub use error::ThrowawayError;
#[cfg(feature = "exactly-once")]
pub use exactly_once::{Attempt, ExactlyOnce, Fault, Finding, Report, Scenario};

use error::Tried;
use server::Server;

/// Part of the socket file's name. The server does not listen on TCP.
const PORT: u16 = 5432;
/// The superuser that `initdb` creates, and its database.
const SUPERUSER: &str = "postgres";

/// A running, temporary PostgreSQL. Stops and removes itself when dropped.
///
/// Dropping waits a fraction of a second for the server to stop; in async code prefer [`stop`](Throwaway::stop). If the
/// server ends for another reason (`pg_ctl stop`), its directory is removed too.
#[derive(Debug)]
#[must_use = "the server stops when this is dropped"]
pub struct Throwaway {
    server: Server,
    bin_dir: PathBuf,
}

/// How to start a [`Throwaway`].
///
/// ```
/// use pgonce_testing::Options;
/// let options = Options::new().fast().setting("max_connections", "200");
/// ```
#[derive(Debug, Clone, Default)]
pub struct Options {
    settings: Vec<(String, String)>,
}

impl Options {
    /// PostgreSQL's defaults: durable, as in production.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Trades durability for speed: no `fsync`. For tests.
    #[must_use]
    pub fn fast(self) -> Self {
        self.setting("fsync", "off")
            .setting("synchronous_commit", "off")
            .setting("full_page_writes", "off")
    }

    /// Sets a server parameter, like `-c name=value`. The last value wins.
    #[must_use]
    pub fn setting(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.push((name.into(), value.into()));
        self
    }
}

impl Throwaway {
    /// Starts a server and waits until it accepts connections: one to three seconds.
    ///
    /// Uses the first PostgreSQL that starts: from `PATH`, then from the usual places of Linux distributions (newest
    /// version first), Homebrew and Postgres.app. If none starts, and the feature `download` (on by default) is
    /// enabled, downloads one from GitHub, checks its SHA-256 and keeps it in the user's cache (root:
    /// `/var/cache/pgonce`). `PGONCE_POSTGRES_MIRROR` is the URL of a mirror with the same files:
    /// `VERSION/postgresql-VERSION-TARGET.tar.gz` and `.sha256`.
    ///
    /// As root, it runs the server as `postgres` or `nobody`, because PostgreSQL refuses to run as root.
    ///
    /// # Errors
    /// If no PostgreSQL starts. The message says what was tried and how to install one.
    ///
    /// # Cancel safety
    /// Cancel safe: everything that was started is stopped and removed.
    pub async fn start(options: &Options) -> Result<Self, ThrowawayError> {
        #[cfg(feature = "download")]
        return Self::start_from(binaries::installed(), options, download::Download::from_env())
            .await;
        #[cfg(not(feature = "download"))]
        return Self::start_from(binaries::installed(), options).await;
    }

    /// Starts one of `installed`, or else a downloaded one.
    async fn start_from(
        installed: Vec<PathBuf>,
        options: &Options,
        #[cfg(feature = "download")] download: Result<download::Download, String>,
    ) -> Result<Self, ThrowawayError> {
        let mut tried = Tried::default();
        if installed.is_empty() {
            tried.push("installed", format!("none in {}", binaries::PLACES));
        }
        for bin_dir in installed {
            match Server::start(&bin_dir, options).await {
                Ok(server) => return Ok(Self { server, bin_dir }),
                Err(reason) => tried.push(bin_dir.display(), reason),
            }
        }
        #[cfg(feature = "download")]
        match download {
            Err(reason) => tried.push("download", reason),
            Ok(download) => match download.bin_dir().await {
                Err(reason) => tried.push("download", reason),
                Ok(bin_dir) => match Server::start(&bin_dir, options).await {
                    Ok(server) => return Ok(Self { server, bin_dir }),
                    Err(reason) => tried.push(bin_dir.display(), reason),
                },
            },
        }
        Err(tried.into_error())
    }

    /// Options for a connection as superuser.
    #[must_use]
    pub fn connect_options(&self) -> PgConnectOptions {
        connect_options(self.server.dir())
    }

    /// The URL of the database, for `psql` and sqlx.
    #[must_use]
    pub fn url(&self) -> String {
        let host = percent_encoded(&self.server.dir().to_string_lossy());
        format!("postgres:///{SUPERUSER}?host={host}&port={PORT}&user={SUPERUSER}&sslmode=disable")
    }

    /// The directory of the programs: `psql`, `pg_ctl`, `pg_dump`.
    #[must_use]
    pub fn bin_dir(&self) -> &Path {
        &self.bin_dir
    }

    /// The server's data directory.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.server.dir().join("data")
    }

    /// Stops the server and removes its directory, without blocking the runtime. Cuts open connections.
    ///
    /// # Cancel safety
    /// Cancel safe: if dropped, the server still stops and its directory is removed.
    pub async fn stop(self) {
        let Self { server, .. } = self;
        server.stop().await;
    }
}

fn connect_options(socket_dir: &Path) -> PgConnectOptions {
    PgConnectOptions::new_without_pgpass()
        .socket(socket_dir)
        .port(PORT)
        .username(SUPERUSER)
        .database(SUPERUSER)
        .ssl_mode(PgSslMode::Disable)
}

/// Escapes characters with a meaning in a URL's query.
fn percent_encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'/' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
            _ if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}
