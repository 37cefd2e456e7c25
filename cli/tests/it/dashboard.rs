//! `pgonce dashboard`: who gets in.

use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStderr, Command};

use crate::commands::pgonce_with;
use crate::support::db::{PATIENCE, TestDb, op, server};

/// The running page.
struct Served {
    address: String,
    path: String,
    stderr: Lines<BufReader<ChildStderr>>,
    child: Child,
}

async fn serve(db: &TestDb, more: &[&str]) -> Served {
    let mut child = Command::new(env!("CARGO_BIN_EXE_pgonce"))
        .args(["dashboard", "--name", "ada"])
        .args(more)
        .env("DATABASE_URL", server().await.url())
        .env("PGONCE_SCHEMA", &db.schema)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap()).lines();
    let stderr = BufReader::new(child.stderr.take().unwrap()).lines();
    let url = tokio::time::timeout(PATIENCE, stdout.next_line()).await.unwrap().unwrap().unwrap();
    let (address, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    Served { address: address.to_owned(), path: format!("/{path}"), stderr, child }
}

impl Served {
    /// The whole answer of one request.
    async fn ask(&self, head: &str, host: &str, cookie: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).await.unwrap();
        let length = body.len();
        let request = format!(
            "{head} HTTP/1.1\r\nhost: {host}\r\ncookie: {cookie}\r\nsec-fetch-site: same-origin\r\n\
             content-length: {length}\r\nconnection: close\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    async fn get(&self, path: &str, cookie: &str) -> String {
        self.ask(&format!("GET {path}"), &self.address, cookie, "").await
    }
}

fn cookie(answer: &str) -> String {
    let (_, rest) = answer.split_once("set-cookie: ").expect("a cookie");
    rest.split(';').next().unwrap().to_owned()
}

#[tokio::test]
async fn the_printed_address_lets_one_browser_in() {
    let db = TestDb::new().await;
    let page = format!("/{}/overview", db.schema);
    let served = serve(&db, &[]).await;
    assert!(served.address.starts_with("127.0.0.1:"), "{}", served.address);
    let refused = "HTTP/1.1 403";
    assert!(served.get(&page, "").await.starts_with(refused));
    assert!(served.get("/open?token=", "").await.starts_with(refused));
    assert!(served.get("/open?token=0123", "").await.starts_with(refused));
    // Under another name, as a site does that points its own name at this machine.
    let other = served.ask(&format!("GET {}", served.path), "evil.example", "", "").await;
    assert!(other.starts_with(refused), "{other}");
    let opened = served.get(&served.path, "").await;
    assert!(opened.starts_with("HTTP/1.1 303") && opened.contains("SameSite=Strict"), "{opened}");
    let session = cookie(&opened);
    assert!(served.get(&served.path, "").await.starts_with(refused), "it works once");
    let shown = served.get(&page, &session).await;
    assert!(
        shown.starts_with("HTTP/1.1 200") && shown.contains("Nothing waits for you"),
        "{shown}"
    );
    let forged = session.replace(|c: char| c.is_ascii_digit(), "0");
    assert!(served.get(&page, &forged).await.starts_with(refused));
}

#[tokio::test]
async fn an_action_is_a_log_line_and_read_only_allows_none() {
    let db = TestDb::new().await;
    drop(db.lease(&op("canary"), PATIENCE).await);
    for (options, status) in [(&["--read-only"][..], "HTTP/1.1 403"), (&[][..], "HTTP/1.1 303")] {
        let mut served = serve(&db, options).await;
        let session = cookie(&served.get(&served.path, "").await);
        let asked = format!("/{}/overview", db.schema);
        let token = cookie(&served.get(&asked, &session).await);
        let seen = db.seen(&op("canary")).await.seen;
        let cookies = format!("{session}; {token}");
        let (_, token) = token.split_once('=').unwrap();
        let form = format!("scope=test%2Fscope&key=canary&seen={seen}&token={token}");
        let act = format!("POST /{}/release", db.schema);
        let answer = served.ask(&act, &served.address, &cookies, &form).await;
        assert!(answer.starts_with(status), "{answer}");
        let line = async {
            loop {
                let line = served.stderr.next_line().await.unwrap().unwrap();
                if line.contains("pgonce::audit") {
                    return line;
                }
            }
        };
        let line = tokio::time::timeout(PATIENCE, line).await.unwrap();
        assert!(line.contains("ada") && line.contains("release"), "{line}");
        assert!(!line.contains("canary") && !line.contains("test/scope"), "{line}");
        served.child.kill().await.unwrap();
    }
}

#[tokio::test]
async fn what_cannot_be_served_is_said_before_anything_is() {
    let db = TestDb::new().await;
    let missing = pgonce_with(&db, &["dashboard", "--also", "none"], &[]).await;
    assert_eq!(missing.code, 5, "{}", missing.stderr);
    let nowhere = [("DATABASE_URL", "postgres:///x?host=/nowhere")];
    assert_eq!(pgonce_with(&db, &["dashboard"], &nowhere).await.code, 1);
}
