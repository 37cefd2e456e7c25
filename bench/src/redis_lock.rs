//! Redis, for the lock that people take before their transaction. The server ends with this program.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::bail;
use redis::AsyncConnectionConfig;
use redis::aio::MultiplexedConnection;

use crate::load::Fault;
use crate::orders::Shop;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fsync {
    EverySecond,
    Always,
}

impl Fsync {
    fn argument(self) -> &'static str {
        match self {
            Self::EverySecond => "everysec",
            Self::Always => "always",
        }
    }
}

/// A loaded machine may be slow.
const PATIENCE: Duration = Duration::from_secs(30);
/// Many times as long as an order takes, so that only the locks of dead processes expire.
const LOCK_MILLIS: u64 = 2000;
/// One day, as long as pgonce remembers keys.
const ANSWER_MILLIS: u64 = 86_400_000;
/// Tells a lock from an answer, which is JSON.
const LOCK: &str = "lock ";

/// Fails if the program is missing.
pub(crate) fn is_installed() -> anyhow::Result<()> {
    match Command::new("redis-server").arg("--version").output() {
        Ok(_) => Ok(()),
        Err(error) => bail!(
            "cannot run redis-server ({error}): install it with `apt-get install redis-server`"
        ),
    }
}

pub(crate) struct Server {
    /// Its standard input is a pipe; closing the pipe stops the server.
    supervisor: Child,
    folder: PathBuf,
}

impl Server {
    pub(crate) async fn start(fsync: Fsync) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("pgonce-bench-").tempdir()?;
        let mut command = Command::new("/bin/sh");
        command.args(["-c", include_str!("supervise.sh"), "supervise"]).arg(folder.path());
        command.args(["--port", "0", "--unixsocket", "socket", "--save", ""]);
        command.args(["--auto-aof-rewrite-percentage", "0"]); // PostgreSQL does not checkpoint or vacuum here either
        command.args(["--appendonly", "yes", "--appendfsync", fsync.argument()]);
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        command.process_group(0); // so that a Ctrl-C in the terminal does not reach the server
        let server = Self { supervisor: command.spawn()?, folder: folder.keep() };
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = connect(&server.socket()).await {
            if Instant::now() > deadline {
                let log = std::fs::read_to_string(server.folder.join("log")).unwrap_or_default();
                bail!("redis-server did not start: {error}\n{log}");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(server)
    }

    pub(crate) fn socket(&self) -> String {
        self.folder.join("socket").display().to_string()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.supervisor.stdin = None;
        // If waiting fails, the supervisor has ended.
        let _ = self.supervisor.wait();
    }
}

async fn connect(socket: &str) -> redis::RedisResult<MultiplexedConnection> {
    let client = redis::Client::open(format!("redis+unix://{socket}"))?;
    let config = AsyncConnectionConfig::new().set_response_timeout(Some(PATIENCE));
    client.get_multiplexed_async_connection_with_config(&config).await
}

/// An unprotected shop behind a lock that becomes the answer: `SET key token NX PX`, the order, `SET key answer`.
#[derive(Clone)]
pub(crate) struct LockedShop {
    shop: Shop,
    redis: MultiplexedConnection,
}

impl LockedShop {
    pub(crate) async fn open(shop: Shop, socket: &str) -> anyhow::Result<Self> {
        Ok(Self { shop, redis: connect(socket).await? })
    }

    /// Takes the order with this key. `None`: another caller has the lock, which would be a 409.
    pub(crate) async fn order(&self, key: &str) -> Result<Option<String>, Fault> {
        let mut redis = self.redis.clone();
        // Releasing a lock after a failure needs its token. Here a failure ends the program.
        let token = format!("{LOCK}{:032x}", fastrand::u128(..));
        // One round trip, for duplicates too: NX and GET together work from Redis 7.0 on.
        let mut lock = redis::cmd("SET");
        lock.arg(key).arg(token).arg("NX").arg("GET").arg("PX").arg(LOCK_MILLIS);
        match lock.query_async::<Option<String>>(&mut redis).await? {
            Some(value) if value.starts_with(LOCK) => return Ok(None),
            Some(answer) => return Ok(Some(serde_json::from_str(&answer)?)),
            None => {}
        }
        let value = self.shop.order(key).await?;
        let answer = serde_json::to_string(&value)?;
        let mut set = redis::cmd("SET");
        let () =
            set.arg(key).arg(answer).arg("PX").arg(ANSWER_MILLIS).query_async(&mut redis).await?;
        Ok(Some(value))
    }
}
