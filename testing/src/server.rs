//! One server process, its directory, and the supervisor that outlives us.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use sqlx::{Connection, PgConnection};
use tempfile::TempDir;
use tokio::time::Instant;

use crate::user::{User, is_open_to_all, is_root};
use crate::{Options, PORT, connect_options};

/// `initdb` and the start together; seconds are normal, a loaded machine may need more.
const START_MAX: Duration = Duration::from_secs(60);
/// Longer than the supervisor takes for its last resort.
const STOP_MAX: Duration = Duration::from_secs(15);
/// Between two looks at a process or at a socket that is not there yet.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// What the kernel leaves for a socket's path, everywhere, with the socket's name taken off.
const SOCKET_DIR_BYTES_MAX: usize = 103 - "/.s.PGSQL.5432".len();

/// The supervisor and what it looks after.
#[derive(Debug)]
pub(crate) struct Server {
    /// Its standard input is the pipe whose end stops the server.
    supervisor: Child,
    dir: PathBuf,
}

impl Server {
    pub(crate) async fn start(bin_dir: &Path, options: &Options) -> Result<Self, String> {
        let mut server = Self::spawn(bin_dir, options)?;
        let deadline = Instant::now() + START_MAX;
        loop {
            match PgConnection::connect_with(&connect_options(&server.dir)).await {
                Ok(conn) => {
                    // It is ready either way.
                    let _ = conn.close().await;
                    return Ok(server);
                }
                Err(_) if server.has_ended() => return Err(server.last_words()),
                Err(error) if is_refusal(&error) => {
                    return Err(format!("started, but refuses connections: {error}"));
                }
                Err(error) if Instant::now() > deadline => {
                    let seconds = START_MAX.as_secs();
                    return Err(format!("takes no connections after {seconds} s: {error}"));
                }
                Err(_) => tokio::time::sleep(LOOK_AGAIN).await,
            }
        }
    }

    fn spawn(bin_dir: &Path, options: &Options) -> Result<Self, String> {
        let user = match is_root() {
            Ok(true) => Some(User::unprivileged()?),
            Ok(false) => None,
            Err(error) => return Err(format!("no temporary file could be made: {error}")),
        };
        let dir = directory(user)
            .map_err(|error| format!("no temporary directory could be made: {error}"))?;
        let supervisor = supervisor(bin_dir, dir.path(), options, user)
            .spawn()
            .map_err(|error| format!("`sh` could not be started: {error}"))?;
        // From here on the supervisor removes the directory.
        Ok(Self { supervisor, dir: dir.keep() })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) async fn stop(mut self) {
        self.let_go();
        let deadline = Instant::now() + STOP_MAX;
        while !self.has_ended() && Instant::now() < deadline {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Closes the pipe, which tells the supervisor to stop the server.
    fn let_go(&mut self) {
        self.supervisor.stdin = None;
    }

    fn has_ended(&mut self) -> bool {
        // A child that cannot be asked is not ours any more.
        !matches!(self.supervisor.try_wait(), Ok(None))
    }

    /// The end of the log of a server that ended.
    fn last_words(&mut self) -> String {
        let mut log = Vec::new();
        if let Some(mut output) = self.supervisor.stdout.take() {
            // Whatever can be read is better than nothing.
            let _ = output.read_to_end(&mut log);
        }
        let log = String::from_utf8_lossy(&log);
        format!("the server did not start; the end of its log:\n{}", log.trim())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.let_go();
        let deadline = std::time::Instant::now() + STOP_MAX;
        while !self.has_ended() && std::time::Instant::now() < deadline {
            std::thread::sleep(LOOK_AGAIN);
        }
    }
}

/// Whether the server answered with an error, other than that it is still starting (57P03).
fn is_refusal(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| error.code().as_deref() != Some("57P03"))
}

/// A new directory that only the server's user can enter. In `/tmp` when the usual place is closed
/// to that user or cannot hold a socket.
fn directory(user: Option<User>) -> std::io::Result<TempDir> {
    let make = |parent: &Path| tempfile::Builder::new().prefix("pgonce-").tempdir_in(parent);
    let usual = std::env::temp_dir();
    let reachable = user.is_none() || is_open_to_all(&usual);
    let dir = match make(&usual) {
        Ok(dir) if reachable && can_hold_socket(dir.path()) => dir,
        _ => make(Path::new("/tmp"))?,
    };
    if let Some(user) = user {
        user.own(dir.path())?;
    }
    Ok(dir)
}

/// The kernel limits a socket's path, and PostgreSQL takes a comma for a list.
fn can_hold_socket(dir: &Path) -> bool {
    let bytes = dir.as_os_str().as_encoded_bytes();
    bytes.len() <= SOCKET_DIR_BYTES_MAX && !bytes.contains(&b',')
}

fn supervisor(bin_dir: &Path, dir: &Path, options: &Options, user: Option<User>) -> Command {
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(include_str!("supervise.sh")).arg("pgonce-throwaway");
    command.arg(bin_dir).arg(dir);
    command.arg("-k").arg(dir).args(["-p", &PORT.to_string(), "-c", "listen_addresses="]);
    for (name, value) in &options.settings {
        command.arg("-c").arg(format!("{name}={value}"));
    }
    // PGDATA, PGPORT, PGOPTIONS and the like would change what the server does.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PG") {
            command.env_remove(name);
        }
    }
    command.env("LC_ALL", "C");
    command.current_dir("/"); // the caller's directory may be closed to the other user
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    command.process_group(0); // so that a Ctrl-C in the terminal is not sent to the server
    if let Some(user) = user {
        user.run(&mut command);
    }
    command
}
