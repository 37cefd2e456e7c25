//! The servers: one PostgreSQL, and a Redis for each way of keeping its data. They end with this program.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use pgonce::PgOnce;
use pgonce::throwaway::{Options, Throwaway};
use redis::AsyncConnectionConfig;
use redis::aio::MultiplexedConnection;
use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

use crate::payment::TABLES;

/// A loaded machine may need long; the clients' own limits are shorter than a stall of a shared disk.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is left of Redis after it crashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Persistence {
    None,
    EverySecond,
    Always,
}

impl Persistence {
    const ALL: [Self; 3] = [Self::None, Self::EverySecond, Self::Always];

    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::None => &["--appendonly", "no"],
            Self::EverySecond => &["--appendonly", "yes", "--appendfsync", "everysec"],
            Self::Always => &["--appendonly", "yes", "--appendfsync", "always"],
        }
    }
}

/// Where the servers are, for this process and for those that it starts.
#[derive(Debug, Clone)]
pub(crate) struct Addresses {
    postgres: String,
    /// Sockets, as in `Persistence::ALL`.
    redis: [String; 3],
}

impl Addresses {
    pub(crate) fn arguments(&self) -> impl Iterator<Item = &String> {
        std::iter::once(&self.postgres).chain(&self.redis)
    }

    pub(crate) fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut next = || arguments.next().context("an address is missing");
        Ok(Self { postgres: next()?, redis: [next()?, next()?, next()?] })
    }

    pub(crate) fn connect_options(&self) -> Result<PgConnectOptions> {
        Ok(PgConnectOptions::from_str(&self.postgres)?)
    }
}

pub(crate) struct Servers {
    pub(crate) addresses: Addresses,
    postgres: Throwaway,
    /// Held for their drop.
    _redis: Vec<RedisServer>,
}

impl Servers {
    pub(crate) async fn start() -> Result<Self> {
        let redis = Persistence::ALL.into_iter().map(RedisServer::start);
        let redis = redis.collect::<Result<Vec<_>>>()?;
        let postgres = Throwaway::start(&Options::new()).await?;
        let sockets = [0, 1, 2].map(|at: usize| redis[at].socket());
        let addresses = Addresses { postgres: postgres.url(), redis: sockets };
        for redis in &redis {
            redis.ready().await?;
        }
        let pool = PgPool::connect_with(addresses.connect_options()?).await?;
        PgOnce::new().migrate(&mut *pool.acquire().await?).await?;
        sqlx::raw_sql(TABLES).execute(&pool).await?;
        pool.close().await;
        Ok(Self { addresses, postgres, _redis: redis })
    }

    pub(crate) async fn stop(self) {
        self.postgres.stop().await;
    }
}

/// The version of the installed redis-server.
pub(crate) fn redis_version() -> Result<String> {
    let output = Command::new("redis-server").arg("--version").output();
    let output = output.context("redis-server cannot be run: `apt-get install redis-server`")?;
    let text = String::from_utf8(output.stdout)?;
    let version = text.split_whitespace().find_map(|word| word.strip_prefix("v="));
    Ok(version.context("redis-server does not say its version")?.to_owned())
}

struct RedisServer {
    /// Its standard input is the pipe whose end stops the server.
    supervisor: Child,
    dir: PathBuf,
}

impl RedisServer {
    fn start(persistence: Persistence) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("pgonce-peers-").tempdir()?;
        let mut command = Command::new("/bin/sh");
        command.args(["-c", include_str!("supervise.sh"), "supervise"]).arg(dir.path());
        command.args(["--port", "0", "--unixsocket", "socket", "--save", ""]);
        command.args(persistence.arguments());
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        command.process_group(0); // so that a Ctrl-C in the terminal is not sent to the server
        let supervisor = command.spawn()?;
        Ok(Self { supervisor, dir: dir.keep() })
    }

    fn socket(&self) -> String {
        self.dir.join("socket").display().to_string()
    }

    async fn ready(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = connect(&self.socket()).await {
            if Instant::now() > deadline {
                let log = std::fs::read_to_string(self.dir.join("log")).unwrap_or_default();
                bail!("redis-server does not start: {error}\n{log}");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.supervisor.stdin = None;
        // If it cannot be waited for, it is gone.
        let _ = self.supervisor.wait();
    }
}

async fn connect(socket: &str) -> redis::RedisResult<MultiplexedConnection> {
    let client = redis::Client::open(format!("redis+unix://{socket}"))?;
    let config = AsyncConnectionConfig::new().set_response_timeout(Some(PATIENCE));
    client.get_multiplexed_async_connection_with_config(&config).await
}

/// What a process needs to perform, for so many clients.
#[derive(Clone)]
pub(crate) struct Services {
    pub(crate) pool: PgPool,
    pub(crate) once: PgOnce,
    redis: [MultiplexedConnection; 3],
}

impl Services {
    pub(crate) async fn connect(addresses: &Addresses, clients: u32, name: &str) -> Result<Self> {
        let [none, every_second, always] = &addresses.redis;
        // A connection each; no ping before each use, which would be a round trip for everybody.
        let pool = PgPoolOptions::new().max_connections(clients).test_before_acquire(false);
        let options = addresses.connect_options()?.application_name(name);
        Ok(Self {
            pool: pool.acquire_timeout(PATIENCE).connect_with(options).await?,
            once: PgOnce::new(),
            redis: [connect(none).await?, connect(every_second).await?, connect(always).await?],
        })
    }

    pub(crate) fn redis(&self, persistence: Persistence) -> MultiplexedConnection {
        self.redis[persistence as usize].clone()
    }
}
