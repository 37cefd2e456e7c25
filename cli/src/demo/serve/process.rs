//! The payment server's process: started, killed, started again.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::{Notify, watch};

use crate::exit::CliError;

/// The payment server as it is now.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Status {
    /// `None` from its death until the next one listens.
    pub(super) up: Option<Up>,
    /// Servers are numbered from 1.
    started: u32,
    /// All servers up to this number are known to be dead.
    pub(super) dead: u32,
    pub(super) kills: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Up {
    pub(super) pid: u32,
    pub(super) address: SocketAddr,
}

/// What the process gets in its environment. Not in its arguments: every user of the machine can read those.
pub(super) struct Environment {
    pub(super) database_url: String,
    pub(super) schema: String,
    /// Without it, the lock is a row in the database.
    pub(super) redis_url: Option<String>,
}

pub(super) struct Process {
    environment: Environment,
    status: watch::Sender<Status>,
    kill: Notify,
}

/// What a supervisor waits before it starts a dead server again. Long enough to be seen.
const RESTART_AFTER: Duration = Duration::from_millis(800);
const START_MAX: Duration = Duration::from_secs(30);

impl Process {
    pub(super) fn new(environment: Environment) -> Self {
        Self { environment, status: watch::Sender::default(), kill: Notify::new() }
    }

    pub(super) fn status(&self) -> Status {
        *self.status.borrow()
    }

    /// Keeps a server running. Returns only when one does not start. Dropped, it kills the server.
    pub(super) async fn keep_running(&self) -> CliError {
        loop {
            // Created before the page can learn of the server, so that no kill is missed.
            let killed = self.kill.notified();
            let mut child = match self.start().await {
                Ok(child) => child,
                Err(error) => {
                    return CliError::failed("demo", format!("no payment server: {error}"));
                }
            };
            // `wait` would close it, and end the server.
            let _open = child.stdin.take();
            let is_killed = tokio::select! {
                _ = child.wait() => false,
                () = killed => {
                    // SIGKILL. It fails if the process has ended by itself.
                    let _ = child.kill().await;
                    true
                }
            };
            self.status.send_modify(|status| {
                status.up = None;
                status.dead = status.started;
                status.kills += u32::from(is_killed);
            });
            tokio::time::sleep(RESTART_AFTER).await;
        }
    }

    async fn start(&self) -> io::Result<Child> {
        self.status.send_modify(|status| status.started += 1);
        let mut child = self.command(self.status().started)?.spawn()?;
        let said = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let mut port = String::new();
        let mut said = BufReader::new(said);
        tokio::time::timeout(START_MAX, said.read_line(&mut port)).await??;
        let port = port.trim().parse::<u16>().map_err(|_| io::Error::other("it ended at once"))?;
        let pid = child.id().ok_or(io::ErrorKind::BrokenPipe)?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        self.status.send_modify(|status| status.up = Some(Up { pid, address }));
        Ok(child)
    }

    fn command(&self, number: u32) -> io::Result<Command> {
        let Environment { database_url, schema, redis_url } = &self.environment;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["demo-server", "--number", &number.to_string()]);
        command.env("DATABASE_URL", database_url).env("PGONCE_SCHEMA", schema);
        match redis_url {
            Some(url) => command.env("REDIS_URL", url),
            None => command.env_remove("REDIS_URL"),
        };
        // It ends when its standard input does: with this process, however this process ends.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        Ok(command)
    }

    /// Kills the server with SIGKILL, and returns the number of its process when it is dead. `None` while none runs.
    pub(super) async fn kill(&self) -> Option<u32> {
        let mut status = self.status.subscribe();
        let up = status.borrow_and_update().up?;
        self.kill.notify_waiters();
        status.wait_for(|now| now.up != Some(up)).await.ok()?;
        Some(up.pid)
    }
}
