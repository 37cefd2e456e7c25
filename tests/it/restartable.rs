//! A PostgreSQL that can be stopped and started again. (A `Throwaway` removes itself when its server ends.)

use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{Connection, PgConnection};
use tempfile::TempDir;

use crate::support::db::{PATIENCE, server};

/// Runs the server until standard input ends, then stops it like `pg_ctl stop -m immediate`. So the server ends with
/// the tests, however they end.
const RUN: &str = r#""$@" & read -r _; kill -QUIT $!; wait $!"#;

/// With PostgreSQL's default settings: durable.
pub struct Restartable {
    dir: TempDir,
    /// The user that runs the server. root may not.
    owner: (u32, u32),
    bin: std::path::PathBuf,
    running: Option<Child>,
}

impl Restartable {
    pub async fn start() -> Self {
        let model = server().await;
        let owner = std::fs::metadata(model.data_dir()).unwrap();
        let owner = (owner.uid(), owner.gid());
        let dir = tempfile::Builder::new().prefix("pgonce-").tempdir_in("/tmp").unwrap();
        chown(dir.path(), Some(owner.0), Some(owner.1)).unwrap();
        let mut server = Self { dir, owner, bin: model.bin_dir().to_owned(), running: None };
        let initdb = server.bin.join("initdb");
        let mut initdb = server.command(initdb);
        initdb.args(["-D", "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C"]);
        let output = tokio::task::spawn_blocking(move || initdb.output()).await.unwrap().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        server.start_again().await;
        server
    }

    pub async fn start_again(&mut self) {
        let postgres = self.bin.join("postgres");
        let mut command = self.command("/bin/sh".into());
        command.args(["-c", RUN, "sh"]).arg(postgres);
        command.args(["-D", "data", "-p", "5432", "-c", "listen_addresses=", "-k"]);
        command.arg(self.dir.path());
        self.running = Some(command.stdin(Stdio::piped()).spawn().unwrap());
        let connecting = async {
            while PgConnection::connect_with(&self.connect_options()).await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, connecting).await.expect("the server starts");
    }

    /// Stops the server without cleanup, like a power cut. It recovers at its next start.
    pub async fn stop_immediately(&mut self) {
        let mut running = self.running.take().expect("it runs");
        drop(running.stdin.take());
        tokio::task::spawn_blocking(move || running.wait()).await.unwrap().unwrap();
    }

    pub fn connect_options(&self) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass()
            .socket(self.dir.path())
            .port(5432)
            .username("postgres")
            .database("postgres")
            .ssl_mode(PgSslMode::Disable)
    }

    fn command(&self, program: std::path::PathBuf) -> Command {
        let mut command = Command::new(program);
        // PGDATA, PGPORT, PGOPTIONS and others would change the server's behavior.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PG") {
                command.env_remove(name);
            }
        }
        command.current_dir(self.dir.path()).uid(self.owner.0).gid(self.owner.1);
        command.env("LC_ALL", "C").process_group(0).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }
}

impl Drop for Restartable {
    fn drop(&mut self) {
        if let Some(mut running) = self.running.take() {
            drop(running.stdin.take());
            let _ = running.wait(); // before its directory is removed
        }
    }
}
