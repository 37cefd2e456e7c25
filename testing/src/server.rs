//! One server process, its directory, and the supervisor that outlives this process.

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

/// For `initdb` and the start together. Usually seconds; a loaded machine takes longer.
const START_MAX: Duration = Duration::from_secs(60);
/// Longer than the supervisor needs to kill the server.
const STOP_MAX: Duration = Duration::from_secs(15);
/// The pause between two checks.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// The kernel's limit for a socket's path on all systems, less the socket's name.
const SOCKET_DIR_BYTES_MAX: usize = 103 - "/.s.PGSQL.5432".len();

/// The supervisor and the server's directory.
#[derive(Debug)]
pub(crate) struct Server {
    /// Its standard input is a pipe; closing the pipe stops the server.
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
                    // The server is ready even if this fails.
                    let _ = conn.close().await;
                    return Ok(server);
                }
                Err(_) if server.has_ended() => return Err(server.last_words()),
                Err(error) if is_refusal(&error) => {
                    return Err(format!("started, but refuses connections: {error}"));
                }
                Err(error) if Instant::now() > deadline => {
                    let seconds = START_MAX.as_secs();
                    return Err(format!("accepts no connections after {seconds} s: {error}"));
                }
                Err(_) => tokio::time::sleep(LOOK_AGAIN).await,
            }
        }
    }

    fn spawn(bin_dir: &Path, options: &Options) -> Result<Self, String> {
        let user = match is_root() {
            Ok(true) => Some(User::unprivileged()?),
            Ok(false) => None,
            Err(error) => return Err(format!("cannot create a temporary file: {error}")),
        };
        let dir = directory(user)
            .map_err(|error| format!("cannot create a temporary directory: {error}"))?;
        let supervisor = supervisor(bin_dir, dir.path(), options, user)
            .spawn()
            .map_err(|error| format!("cannot start `sh`: {error}"))?;
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

    /// Closes the pipe, so that the supervisor stops the server.
    fn let_go(&mut self) {
        self.supervisor.stdin = None;
    }

    fn has_ended(&mut self) -> bool {
        // If the state is unknown, the child counts as ended.
        !matches!(self.supervisor.try_wait(), Ok(None))
    }

    /// The end of the log of a server that failed to start.
    fn last_words(&mut self) -> String {
        let mut log = Vec::new();
        if let Some(mut output) = self.supervisor.stdout.take() {
            // Uses what can be read.
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

/// Whether the server answered with an error other than "still starting" (57P03).
fn is_refusal(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| error.code().as_deref() != Some("57P03"))
}

/// Creates a directory that only the server's user can enter. Uses `/tmp` if that user cannot enter the usual place, or
/// if its path is unfit for a socket.
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

/// The kernel limits a socket path's length, and PostgreSQL takes a comma as a separator.
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
    // PGDATA, PGPORT, PGOPTIONS and others would change the server's behavior.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PG") {
            command.env_remove(name);
        }
    }
    command.env("LC_ALL", "C");
    command.current_dir("/"); // the other user may lack access to the caller's directory
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    command.process_group(0); // so that a Ctrl-C in the terminal does not reach the server
    if let Some(user) = user {
        user.run(&mut command);
    }
    command
}
