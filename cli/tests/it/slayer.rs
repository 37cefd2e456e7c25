//! `pgonce demo --serve`, used as its page uses it, but without a browser. The page is tested in `browser/`.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use pgonce::sqlx::ConnectOptions;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

use crate::commands::pgonce_with;
use crate::support::db::{PATIENCE, TestDb};

struct Demo {
    /// Of its own, since another test counts the demos' schemas.
    db: TestDb,
    program: Child,
    address: SocketAddr,
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Value,
}

/// Kept where `redis-server` is found, if at all.
const USUAL_PATH: Option<&str> = None;
/// No Redis is found here.
const EMPTY_PATH: Option<&str> = Some("/nowhere");

impl Demo {
    async fn start(path: Option<&str>) -> Self {
        let db = TestDb::in_new_database().await;
        let url = db.options.to_url_lossy();
        let mut command = Command::new(env!("CARGO_BIN_EXE_pgonce"));
        command.args(["demo", "--serve", "--json"]).env("DATABASE_URL", url.as_str());
        command.env_remove("REDIS_URL").envs(path.map(|path| ("PATH", path)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut program = command.spawn().unwrap();
        let mut line = String::new();
        let said = program.stdout.take().unwrap();
        BufReader::new(said).read_line(&mut line).await.unwrap();
        let url = serde_json::from_str::<Value>(&line).unwrap()["url"].as_str().unwrap().to_owned();
        let address = url.trim_start_matches("http://").trim_end_matches('/').parse().unwrap();
        let demo = Self { db, program, address };
        demo.until(|state| state["server"]["pid"].is_u64()).await;
        demo
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        let answer = request(self.address, Method::POST, path, &[], body).await.unwrap();
        assert_eq!(answer.status, StatusCode::OK, "{path}");
        answer.body
    }

    async fn state(&self) -> Value {
        request(self.address, Method::GET, "/state", &[], Value::Null).await.unwrap().body
    }

    /// Looks at the state until it is so.
    async fn until(&self, is_so: impl Fn(&Value) -> bool) -> Value {
        let looking = async {
            loop {
                let state = self.state().await;
                if is_so(&state) {
                    return state;
                }
            }
        };
        tokio::time::timeout(PATIENCE, looking).await.expect("it never happened")
    }

    /// Owes payments. Returns them.
    async fn owe(&self, keys: Value) -> Vec<Value> {
        self.post("/payments", json!({ "keys": keys })).await.as_array().unwrap().clone()
    }

    /// Sends a payment until it is answered with 201.
    async fn pay(&self, service: &str, payment: &Value) -> Answer {
        let paying = async {
            for attempt in 100.. {
                match pay(self.address, service, payment, attempt, 0.0).await {
                    Some(answer) if answer.status == StatusCode::CREATED => return answer,
                    // The lock of a dead server expires, and a killed server comes back.
                    _ => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
            unreachable!("PATIENCE ends first")
        };
        tokio::time::timeout(PATIENCE, paying).await.expect("it is never paid")
    }
}

/// `None`: the connection closed without a response.
async fn pay(
    address: SocketAddr,
    service: &str,
    payment: &Value,
    attempt: u32,
    loss: f64,
) -> Option<Answer> {
    let (id, key) = (&payment["payment"], payment["key"].as_str());
    let path = format!("/pay/{service}?payment={id}&click=0&attempt={attempt}&loss={loss}");
    let headers = key.map(|key| ("idempotency-key", key));
    let body = json!({ "payment": id, "amount": payment["amount"] });
    request(address, Method::POST, &path, headers.as_slice(), body).await
}

/// `None`: the connection closed without a response.
async fn request(
    address: SocketAddr,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: Value,
) -> Option<Answer> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(path);
    if !headers.iter().any(|(name, _)| *name == "host") {
        request = request.header("host", address.to_string());
    }
    for (name, value) in headers.iter().chain(&[("content-type", "application/json")]) {
        request = request.header(*name, *value);
    }
    let body = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
    let response = sender.send_request(request.body(Full::new(body)).unwrap()).await.ok()?;
    let (head, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let body = serde_json::from_slice(&body).unwrap_or_default();
    Some(Answer { status: head.status, headers: head.headers, body })
}

fn sum(state: &Value, service: &str, name: &str) -> u64 {
    state[service][name].as_u64().unwrap()
}

#[track_caller]
fn assert_balanced(book: &Value, payments: u64) {
    for (name, wanted) in
        [("payments", payments), ("charges", payments), ("doubled", 0), ("lost", 0), ("unpaid", 0)]
    {
        assert_eq!(book[name], wanted, "{name}: {book}");
    }
    assert_eq!(book["owed"], book["charged"]);
}

#[tokio::test]
async fn without_a_key_a_lost_answer_is_charged_again_and_with_a_key_it_is_not() {
    let demo = Demo::start(USUAL_PATH).await;
    let payment = &demo.owe(json!([null])).await[0];
    for attempt in 1..=6 {
        for service in ["once", "lock"] {
            let answer = pay(demo.address, service, payment, attempt, 1.0).await;
            assert!(answer.is_none(), "all answers are lost");
        }
    }
    let state = demo.state().await;
    for service in ["once", "lock"] {
        let charges = sum(&state, service, "charges");
        assert!((2..=6).contains(&charges), "{state}");
        assert_eq!(sum(&state, service, "doubled"), charges - 1);
        assert_eq!(sum(&state, service, "charged"), charges * sum(&state, service, "owed"));
    }
    assert_eq!(sum(&state, "once", "charges"), sum(&state, "lock", "charges"), "the same losses");
    assert_eq!((&state["requests"], &state["unanswered"]), (&12.into(), &12.into()));

    demo.post("/start-over", json!({})).await;
    let payment = &demo.owe(json!(["a-key"])).await[0];
    for service in ["once", "lock"] {
        for attempt in 1..=6 {
            assert!(pay(demo.address, service, payment, attempt, 1.0).await.is_none());
        }
        let answer = demo.pay(service, payment).await;
        assert!(answer.body["receipt"].is_u64(), "{}", answer.body);
        assert_eq!(answer.headers.contains_key("idempotent-replayed"), service == "once");
    }
    let state = demo.state().await;
    assert_balanced(&state["once"], 1);
    assert_balanced(&state["lock"], 1);
    let row = &state["payments"][0];
    assert_eq!((&row["key"], &row["once"]["status"]), (&"a-key".into(), &"completed".into()));
    assert_eq!((&row["once"]["code"], &row["lock"]["status"]), (&201.into(), &"done".into()));
}

/// Kills the server while it works, and retries, until the lock has charged twice and has lost a payment.
async fn kills(demo: Demo) {
    let mut payments = 0;
    let state = loop {
        let state = demo.state().await;
        let lock = match (sum(&state, "lock", "doubled"), sum(&state, "lock", "lost")) {
            (0, _) => "lock",         // die between charge and answer, and the lock expires
            (_, 0) => "lock-forever", // die between lock and charge
            _ => break state,
        };
        assert!(payments < 60, "the lock withstands the kills: {state}");
        let keys = (0..3).map(|number| format!("key-{}", payments + number)).collect::<Vec<_>>();
        payments += 3;
        let owed = demo.owe(json!(keys)).await;
        let mut sent = JoinSet::new();
        for payment in owed.clone() {
            for service in ["once", lock] {
                let (address, payment) = (demo.address, payment.clone());
                sent.spawn(async move { pay(address, service, &payment, 1, 0.0).await });
            }
        }
        let is_charged = lock == "lock";
        demo.until(|state| {
            let rows = state["payments"].as_array().unwrap()[..3].iter();
            let locks = rows.map(|row| &row["lock"]);
            let mut ready = locks.filter(|lock| {
                let has_receipt = !lock["receipts"].as_array().unwrap().is_empty();
                lock["status"] == "done" || lock["status"] == "taken" && has_receipt == is_charged
            });
            ready.next().is_some()
        })
        .await;
        let killed = demo.post("/kill", json!({})).await;
        assert!(killed["killed"].is_u64());
        sent.join_all().await;
        for payment in &owed {
            for attempt in 2..5 {
                assert!(pay(demo.address, "once", payment, attempt, 1.0).await.is_none());
            }
            demo.pay("once", payment).await;
            if is_charged {
                demo.pay("lock", payment).await;
            }
        }
        assert_balanced(&demo.state().await["once"], payments);
    };
    assert!(state["server"]["kills"].as_u64() >= Some(2), "{state}");
    assert_balanced(&state["once"], payments);
}

#[tokio::test]
async fn kills_double_and_lose_payments_with_a_lock_but_not_with_pgonce() {
    kills(Demo::start(USUAL_PATH).await).await;
}

#[tokio::test]
async fn without_a_redis_the_lock_is_a_row() {
    let demo = Demo::start(EMPTY_PATH).await;
    let lock = demo.state().await["about"]["lock"].to_string();
    assert!(lock.contains("a row that is committed first"), "{lock}");
    kills(demo).await;
}

#[tokio::test]
async fn only_its_own_page_may_press_the_buttons() {
    let demo = Demo::start(EMPTY_PATH).await;
    let ask = async |method: Method, path, headers: &[(&str, &str)]| {
        request(demo.address, method, path, headers, json!({})).await.unwrap()
    };
    let own = ask(Method::GET, "/", &[]).await;
    assert_eq!(own.status, StatusCode::OK);
    let policy = own.headers["content-security-policy"].to_str().unwrap();
    assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    for path in ["/kill", "/start-over", "/payments", "/pay/once"] {
        let cross_site = ask(Method::POST, path, &[("sec-fetch-site", "cross-site")]).await;
        assert_eq!(cross_site.status, StatusCode::FORBIDDEN, "{path}");
    }
    let other_name = ask(Method::GET, "/state", &[("host", "example.org")]).await;
    assert_eq!(other_name.status, StatusCode::FORBIDDEN);
    assert_eq!(ask(Method::POST, "/kill", &[("sec-fetch-site", "same-origin")]).await.status, 200);
}

#[tokio::test]
async fn it_leaves_no_process_and_no_schema() {
    let sessions = "select count(*) = 0 from pg_stat_activity
                     where application_name like 'pgonce\\_demo%' and datname = current_database()";
    for signal in ["-TERM", "-KILL"] {
        let mut demo = Demo::start(USUAL_PATH).await;
        // The payment server is connected.
        let payment = &demo.owe(json!(["a-key"])).await[0];
        demo.pay("once", payment).await;
        let pid = demo.program.id().unwrap().to_string();
        Command::new("kill").args([signal, &pid]).status().await.unwrap();
        let ended = demo.program.wait().await.unwrap();
        demo.db.until(sessions).await;
        if signal == "-TERM" {
            assert_eq!(ended.code(), Some(0));
            let schemas = "select count(*) from pg_namespace where nspname like 'pgonce\\_demo%'";
            assert_eq!(demo.db.ask::<i64>(schemas).await, 0);
        }
    }
}

#[tokio::test]
async fn a_port_that_is_taken_is_told() {
    let db = TestDb::in_new_database().await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let args = ["demo", "--serve", "--port", port.as_str(), "--json"];
    let url = db.options.to_url_lossy().to_string();
    let refused = pgonce_with(&db, &args, &[("DATABASE_URL", url.as_str())]).await;
    assert_eq!((refused.code, &refused.json()["error"]["kind"]), (1, &"port".into()));
    for args in [&["demo", "--port", "1"][..], &["demo", "--serve", "--clients", "3"]] {
        assert_eq!(pgonce_with(&db, args, &[]).await.code, 2, "{args:?}");
    }
}

#[tokio::test]
async fn a_redis_that_does_not_answer_is_told_without_its_password() {
    let db = TestDb::in_new_database().await;
    let url = db.options.to_url_lossy().to_string();
    let redis = ("REDIS_URL", "redis://:canary7f3a@127.0.0.1:1");
    let refused = pgonce_with(&db, &["demo", "--serve"], &[("DATABASE_URL", &url), redis]).await;
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("cannot connect to Redis"), "{}", refused.stderr);
    assert!(!refused.stderr.contains("canary7f3a"), "{}", refused.stderr);
}
