//! A PostgreSQL that can be stopped and started again: a `Throwaway` removes itself when its server ends.

use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{Connection, PgConnection};
use tempfile::TempDir;

use crate::support::db::{PATIENCE, server};

/// Runs the server until standard input ends, and then stops it as `pg_ctl stop -m immediate` does. So it
/// does not outlive the tests, however these end.
const RUN: &str = r#""$@" & read -r _; kill -QUIT $!; wait $!"#;

/// With PostgreSQL's own settings: durable.
pub struct Restartable {
    dir: TempDir,
    /// Who may run it: root may not.
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

    /// Starts the server, and waits until it takes connections.
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

    /// Stops it without any clean-up, as a power cut would; it recovers when it is started again.
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
        // PGDATA, PGPORT, PGOPTIONS and the like would change what the server does.
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
            let _ = running.wait(); // before its directory goes
        }
    }
}
