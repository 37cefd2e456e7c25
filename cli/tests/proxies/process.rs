//! Servers and proxies as separate processes. None outlives the test.

use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pgonce_testing::Throwaway;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{Connection, PgConnection};
use tokio::time::Instant;

/// How long a test waits for something that must happen.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A program that runs until this is dropped, and accepts connections on a socket in its folder.
#[derive(Debug)]
pub struct Process {
    name: &'static str,
    /// Its standard input is a pipe; closing the pipe stops the program.
    supervisor: Child,
    dir: PathBuf,
}

/// A new folder for a program. It belongs to the server's user, who runs the program: most refuse to run as root.
pub fn folder(server: &Throwaway) -> PathBuf {
    let dir = tempfile::Builder::new().prefix("pgonce-").tempdir_in("/tmp").unwrap().keep();
    let owner = server.data_dir().metadata().unwrap();
    chown(&dir, Some(owner.uid()), Some(owner.gid())).unwrap();
    dir
}

impl Process {
    /// Starts an installed program in its folder, and waits until it accepts connections.
    pub async fn start(
        name: &'static str,
        dir: PathBuf,
        program: &Path,
        arguments: &[&str],
    ) -> Self {
        let owner = dir.metadata().unwrap();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", include_str!("supervise.sh"), "supervise"]).arg(&dir);
        command.arg(program).args(arguments).uid(owner.uid()).gid(owner.gid());
        command.env("LC_ALL", "C").env_remove("PGOPTIONS").current_dir("/");
        command.process_group(0); // a Ctrl-C in the terminal reaches only the test
        let supervisor = command.stdin(Stdio::piped()).spawn().expect("start sh");
        let mut process = Self { name, supervisor, dir };
        process.until_it_connects().await;
        process
    }

    async fn until_it_connects(&mut self) {
        let (options, deadline) = (self.options(), Instant::now() + PATIENCE);
        let log = self.dir.join("log");
        let mut said = String::new();
        loop {
            said = std::fs::read_to_string(&log).unwrap_or(said);
            let Err(error) = PgConnection::connect_with(&options).await else { return };
            if let Some(status) = self.supervisor.try_wait().unwrap() {
                panic!("{} has ended: {status}\n{said}", self.name);
            }
            assert!(Instant::now() < deadline, "{}: {error}\n{said}", self.name);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub fn options(&self) -> PgConnectOptions {
        let options = PgConnectOptions::new_without_pgpass().socket(&self.dir).port(5432);
        options.username("postgres").database("postgres").ssl_mode(PgSslMode::Disable)
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.supervisor.stdin = None;
        self.supervisor.wait().expect("wait for the supervisor");
    }
}

pub fn installed(place: &str, package: &str) -> PathBuf {
    assert!(
        Path::new(place).exists(),
        "{place} is missing: install it with `apt-get install {package}`"
    );
    place.into()
}
