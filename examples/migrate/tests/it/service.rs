//! A guide's service as another process, and a client.

use std::path::Path;

use reqwest::header::{CONTENT_TYPE, HeaderMap, LOCATION};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::database::{Database, PATIENCE};
use crate::process::{Process, free_ports};

#[derive(Debug)]
pub struct Service {
    process: Process,
    pub client: Client,
}

#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    url: String,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    pub status: u16,
    pub content_type: Option<String>,
    pub location: Option<String>,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("{self:?}"))
    }
}

/// Starts a program of this crate.
pub fn start(program: &str, environment: &[(&str, String)]) -> Process {
    let path = Path::new(env!("CARGO_BIN_EXE_redis-lock-before")).with_file_name(program);
    Process::start(path, &[], environment.iter().cloned())
}

impl Service {
    /// Starts the program, and waits until it takes connections.
    pub async fn start(program: &str, db: &Database, more: &[(&str, String)]) -> Self {
        let [port] = free_ports();
        let address = format!("127.0.0.1:{port}");
        let mut environment = vec![("DATABASE_URL", db.url.clone()), ("LISTEN", address.clone())];
        environment.extend_from_slice(more);
        let mut process = start(program, &environment);
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(&address).await.is_err() {
            process.must_run();
            assert!(Instant::now() < deadline, "{program} does not start");
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        let client = Client::new(&address);
        Self { process, client }
    }

    pub fn kill(self) {
        self.process.kill();
    }

    /// A payment of the user alice.
    pub async fn pay(&self, key: &str, cents: i64) -> Answer {
        self.client.pay("alice", key, cents).await.expect("an answer")
    }

    /// The same, in a task.
    pub fn paying(&self, key: &str, cents: i64) -> tokio::task::JoinHandle<Answer> {
        let (client, key) = (self.client.clone(), key.to_owned());
        tokio::spawn(async move { client.pay("alice", &key, cents).await.expect("an answer") })
    }
}

impl Client {
    pub fn new(address: &str) -> Self {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { http, url: format!("http://{address}/payments") }
    }

    /// An error if the connection breaks.
    pub async fn pay(&self, user: &str, key: &str, cents: i64) -> reqwest::Result<Answer> {
        let request = self.http.post(&self.url).header("x-user", user);
        let request = request.header("idempotency-key", key).json(&json!({ "cents": cents }));
        let response = request.send().await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = |headers: &HeaderMap, name| {
            headers.get(name).map(|value| value.to_str().unwrap().to_owned())
        };
        let content_type = text(&headers, CONTENT_TYPE);
        let location = text(&headers, LOCATION);
        Ok(Answer { status, content_type, location, body: response.text().await? })
    }
}
