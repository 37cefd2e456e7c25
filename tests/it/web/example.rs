//! `examples/payments` as a separate process with its own database.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client, Error};
use hyper_util::rt::TokioExecutor;
use sqlx::ConnectOptions;
use tempfile::NamedTempFile;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use super::Got;
use crate::support::db::{PATIENCE, TestDb};
use crate::support::example::example;

/// Killed when dropped.
pub struct Example {
    child: Child,
    /// Kept open: the server could not write to a closed pipe.
    output: Lines<BufReader<ChildStdout>>,
    pub address: String,
}

impl Example {
    /// Starts the server and waits until it listens. With port 0 the system chooses a port.
    pub async fn start(db: &TestDb, port: u16) -> Self {
        let log = NamedTempFile::new().unwrap();
        let mut child = Command::new(example("payments"))
            .env("DATABASE_URL", db.options.to_url_lossy().as_str())
            .env("PORT", port.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log.reopen().unwrap())
            .kill_on_drop(true)
            .spawn()
            .expect("start the example");
        let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = tokio::time::timeout(PATIENCE, output.next_line()).await;
        let line = line.expect("the example starts").unwrap().unwrap_or_default();
        let Some(address) = line.strip_prefix("listening on http://") else {
            panic!("the example did not start: {line}\n{}", std::fs::read_to_string(&log).unwrap());
        };
        Self { child, output, address: address.to_owned() }
    }

    pub fn port(&self) -> u16 {
        self.address.rsplit(':').next().unwrap().parse().unwrap()
    }

    pub async fn kill(mut self) {
        self.child.kill().await.expect("kill the example");
    }

    pub async fn terminate(&self) {
        let kill = format!("kill -TERM {}", self.child.id().expect("it still runs"));
        assert!(Command::new("sh").args(["-c", &kill]).status().await.unwrap().success());
    }

    /// Waits until the process has ended. Returns the last line it printed.
    pub async fn ended(mut self) -> (ExitStatus, Option<String>) {
        let mut last = None;
        let ending = async {
            while let Some(line) = self.output.next_line().await.unwrap() {
                last = Some(line);
            }
            self.child.wait().await.unwrap()
        };
        let status = tokio::time::timeout(PATIENCE, ending).await.expect("the example ends");
        (status, last)
    }
}

/// A client of the example, for tenant `acme`.
#[derive(Clone)]
pub struct Caller {
    client: Client<HttpConnector, Full<Bytes>>,
    address: String,
}

impl Caller {
    pub fn new(address: &str) -> Self {
        // If a connection breaks, the test repeats the request.
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(Duration::from_secs(5))
            .retry_canceled_requests(false)
            .build_http();
        Self { client, address: address.to_owned() }
    }

    pub async fn get(&self, path: &str) -> Got {
        let request = self.request(Method::GET, path).body(Full::default()).unwrap();
        self.send(request).await.unwrap()
    }

    pub async fn post(&self, path: &str, key: &str, body: &str) -> Result<Got, Error> {
        let request = self.request(Method::POST, path).header("idempotency-key", key);
        self.send(request.body(body.to_owned().into()).unwrap()).await
    }

    pub fn request(&self, method: Method, path: &str) -> http::request::Builder {
        Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.address))
            .header("authorization", "Bearer acme")
            .header("content-type", "application/json")
    }

    /// The error is the connection's, from connecting or later: see `Error::is_connect`.
    pub async fn send(&self, request: Request<Full<Bytes>>) -> Result<Got, Error> {
        let (parts, body) = self.client.request(request).await?.into_parts();
        let body = body.collect().await.map_or_else(|_| Bytes::new(), |body| body.to_bytes());
        Ok(Got { status: parts.status, headers: parts.headers, body, answer: None })
    }
}
