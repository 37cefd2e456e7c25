//! A temporary, real PostgreSQL for demos, examples and tests.
//!
//! [`Throwaway::start`] makes a new cluster in a temporary directory, from the binaries on the
//! machine. It listens on a Unix socket inside that directory and nowhere else.
//!
//! Server and directory are gone when the [`Throwaway`] is dropped, and also when the process ends
//! any other way: panic, Ctrl-C, `process::exit`, `kill -9`. A small `sh` keeps watch over the
//! server and cleans up as soon as the pipe to this process breaks.
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
mod database;
#[cfg(feature = "download")]
mod download;
mod error;
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

pub use database::Database;
pub use error::ThrowawayError;

use error::Tried;
use server::Server;

/// The server's port: it names the socket file. Nothing listens on TCP.
const PORT: u16 = 5432;
/// The superuser that `initdb` makes, and the database that comes with it.
const SUPERUSER: &str = "postgres";

/// A running, temporary PostgreSQL. Stops and removes itself when dropped.
///
/// Dropping waits for the server to stop, a fraction of a second; in async code prefer
/// [`stop`](Throwaway::stop). When the server ends for another reason (`pg_ctl stop`), its
/// directory is removed as well.
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
    /// PostgreSQL's own defaults: durable, as in production.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives up durability for speed: no `fsync`. For tests.
    #[must_use]
    pub fn fast(self) -> Self {
        self.setting("fsync", "off")
            .setting("synchronous_commit", "off")
            .setting("full_page_writes", "off")
    }

    /// Sets a server parameter, as `-c name=value` would. The last one wins.
    #[must_use]
    pub fn setting(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.push((name.into(), value.into()));
        self
    }
}

impl Throwaway {
    /// Starts a server and waits until it takes connections: one to three seconds.
    ///
    /// Uses the first PostgreSQL that works: on `PATH`, then the usual places of the Linux
    /// distributions (newest version first), of Homebrew and of Postgres.app. Only if none works, and with the feature
    /// `download` (a default), it downloads one from GitHub, checks its SHA-256 and keeps it in the user's cache (root:
    /// `/var/cache/pgonce`). `PGONCE_POSTGRES_MIRROR` is the URL of another place with the same files:
    /// `VERSION/postgresql-VERSION-TARGET.tar.gz` and `.sha256`.
    ///
    /// Run as root, it drops to `postgres` or `nobody`, since PostgreSQL refuses to run as root.
    ///
    /// # Errors
    /// When no PostgreSQL works. The message says what was tried and how to install one.
    ///
    /// # Cancel safety
    /// Cancel safe: whatever was started is stopped and removed.
    pub async fn start(options: &Options) -> Result<Self, ThrowawayError> {
        #[cfg(feature = "download")]
        return Self::start_from(binaries::installed(), options, download::Download::from_env())
            .await;
        #[cfg(not(feature = "download"))]
        return Self::start_from(binaries::installed(), options).await;
    }

    /// Of these, or else of what is downloaded.
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

    /// How to connect, as its superuser.
    #[must_use]
    pub fn connect_options(&self) -> PgConnectOptions {
        connect_options(self.server.dir())
    }

    /// How to connect, as a URL for `psql` and sqlx.
    #[must_use]
    pub fn url(&self) -> String {
        let host = percent_encoded(&self.server.dir().to_string_lossy());
        format!("postgres:///{SUPERUSER}?host={host}&port={PORT}&user={SUPERUSER}&sslmode=disable")
    }

    /// Where its programs are: `psql`, `pg_ctl`, `pg_dump`.
    #[must_use]
    pub fn bin_dir(&self) -> &Path {
        &self.bin_dir
    }

    /// Its data directory.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.server.dir().join("data")
    }

    /// Stops the server and removes its directory, without blocking the runtime. Connections that
    /// are still open are cut.
    ///
    /// # Cancel safety
    /// Cancel safe: the server stops and its directory goes even if this is dropped.
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

/// Escapes what has a meaning in a URL's query.
fn percent_encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'/' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
            _ if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}
