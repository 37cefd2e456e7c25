//! A client of the protocol with a server of its own, and the database.

use std::process::Stdio;
use std::time::Duration;

use pgonce::PgOnce;
use pgonce_testing::Throwaway;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, ConnectOptions, PgPool};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use crate::remotes::Remotes;

/// How long a test waits for something that must happen.
pub const PATIENCE: Duration = Duration::from_secs(45);

#[derive(Debug)]
pub struct Database {
    pool: PgPool,
    url: String,
}

impl Database {
    pub async fn new() -> Self {
        let server = Throwaway::shared().await.expect("a PostgreSQL to test on");
        let options = server.new_database().await.unwrap();
        let pool = PgPool::connect_with(options.clone()).await.unwrap();
        PgOnce::new().migrate(&mut pool.acquire().await.unwrap()).await.unwrap();
        Self { pool, url: options.to_url_lossy().to_string() }
    }

    pub async fn number(&self, sql: &str) -> i64 {
        sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&self.pool).await.unwrap()
    }
}

#[derive(Debug)]
pub struct Agent {
    client: Child,
    calls: ChildStdin,
    results: Lines<BufReader<ChildStdout>>,
    server: String,
}

impl Agent {
    pub async fn start(db: &Database, remotes: &Remotes) -> Self {
        let mut client = Command::new("node")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/client/call.mjs"))
            .arg(env!("CARGO_BIN_EXE_agent_tool"))
            .env("DATABASE_URL", &db.url)
            .env("AGENT_USER", "alice")
            .env("PROVIDER_URL", &remotes.url)
            .env("LEASE_SECONDS", "2")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("node is installed");
        let calls = client.stdin.take().unwrap();
        let results = BufReader::new(client.stdout.take().unwrap()).lines();
        let mut agent = Self { client, calls, results, server: String::new() };
        agent.server = agent.line().await;
        agent
    }

    async fn line(&mut self) -> String {
        let line = timeout(PATIENCE, self.results.next_line()).await.expect("an answer in time");
        line.unwrap().expect("an answer; npm ci --prefix client was run")
    }

    pub async fn send(&mut self, tool: &str, arguments: &Value) {
        let call = json!({ "name": tool, "arguments": arguments });
        self.calls.write_all(format!("{call}\n").as_bytes()).await.unwrap();
    }

    pub async fn result(&mut self) -> Value {
        serde_json::from_str(&self.line().await).unwrap()
    }

    pub async fn call(&mut self, tool: &str, arguments: &Value) -> Value {
        self.send(tool, arguments).await;
        self.result().await
    }

    /// Kills the server with signal 9, and waits until its client has noticed.
    pub async fn kill(mut self) {
        let kill = Command::new("kill").args(["-9", &self.server]).status().await.unwrap();
        assert!(kill.success());
        drop(self.line().await); // the client is told that the connection is closed
        drop(self.client.kill().await);
    }
}
