//! The exchange over TCP: what is read, what is sent, and what happens to the connection.

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use axum::routing::{any, get, post as on_post};
use http::StatusCode;
use hyper_util::rt::TokioIo;
use pgonce::web::{OnceClaim, OnceTx};
use pgonce::{Operation, PgOnce};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::wire::{Count, Http2, Server, Wire, head, whole};
use super::{layer, lease};
use crate::support::db::{PATIENCE, TestDb, effect};

/// Writes an effect and answers with its number. Its `Date` and cookie must not be replayed.
fn router(db: &TestDb) -> Router {
    let schema = db.schema.clone();
    let handler = async move |mut tx: OnceTx, body: String| {
        let id = effect(&mut tx, &schema, &body).await.unwrap();
        let date = ("date", "Thu, 01 Jan 1970 00:00:00 GMT");
        (StatusCode::CREATED, [date, ("set-cookie", "session=1")], format!("payment {id}"))
    };
    Router::new().route("/", on_post(handler).layer(layer(db).request_bytes_max(1000)))
}

#[tokio::test]
async fn a_connection_outlives_every_refusal() {
    let db = TestDb::with_connections(1).await;
    let server = Server::start(router(&db)).await;
    let mut wire = Wire::connect(server.addr).await;
    wire.send("POST / HTTP/1.1\r\nhost: test\r\nx-tenant: acme\r\ncontent-length: 3\r\n\r\nabc")
        .await;
    assert_eq!(wire.answer().await.code(), "key_missing");
    assert_eq!(wire.post("\"half", "abc").await.code(), "key_malformed");
    let _claim = db.lease(&Operation::new("acme/test", "busy").unwrap(), PATIENCE).await;
    let busy = wire.post("busy", "abc").await;
    assert_eq!((busy.status, busy.code()), (StatusCode::CONFLICT, "in_progress".into()));
    assert_eq!(wire.post("k", "abc").await.status, StatusCode::CREATED);
    assert_eq!(wire.post("k", "abd").await.code(), "mismatch");
    assert!(wire.post("k", "abc").await.is_replay());
}

#[tokio::test]
async fn a_replay_is_an_exchange_of_its_own() {
    let db = TestDb::with_connections(1).await;
    let server = Server::start(router(&db)).await;
    let first = server.post("k", "abc").await;
    assert_eq!(first.header("date"), Some("Thu, 01 Jan 1970 00:00:00 GMT"));
    for retry in
        [server.post("k", "abc").await, Http2::connect(server.addr).await.post("k", "abc").await]
    {
        assert!(retry.is_replay());
        assert_eq!((retry.status, &retry.body), (first.status, &first.body));
        assert_eq!(retry.header("content-length"), Some("9"));
        assert!(!retry.header("date").unwrap().contains("1970"), "{retry:?}");
        assert_eq!(retry.header("transfer-encoding"), None);
        assert_eq!(retry.header("set-cookie"), None);
        assert_eq!(retry.header("cache-control"), Some("no-store"));
    }
    assert_eq!(db.effects().await, 1);
}

#[tokio::test]
async fn reads_and_upgrades_pass_without_a_look_at_the_database() {
    let db = TestDb::with_connections(1).await;
    let echo = async |mut request: Request| {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut io = TokioIo::new(upgrade.await.unwrap());
            let mut word = [0; 4];
            io.read_exact(&mut word).await.unwrap();
            io.write_all(&word).await.unwrap();
        });
        Response::builder()
            .status(StatusCode::SWITCHING_PROTOCOLS)
            .header("connection", "upgrade")
            .header("upgrade", "echo")
            .body(Body::empty())
            .unwrap()
    };
    let router = Router::new().route("/", get(async || "read")).route("/echo", any(echo));
    db.pool.close().await; // a look would fail
    let server = Server::start(router.layer(layer(&db))).await;
    let mut wire = Wire::connect(server.addr).await;
    for method in ["GET", "HEAD"] {
        wire.send(head("k").replace("POST", method) + "\r\n").await;
        let (status, headers) = wire.head().await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(headers.get("content-length").unwrap(), "4");
        assert!(!headers.contains_key("idempotent-replayed"));
        wire.exactly(if method == "GET" { 4 } else { 0 }).await;
    }
    let upgrade = "connection: upgrade\r\nupgrade: echo\r\n\r\n";
    let asks = |method: &str| head("k").replace("POST /", &format!("{method} /echo")) + upgrade;
    let mut wire = Wire::connect(server.addr).await;
    wire.send(asks("GET")).await;
    assert_eq!(wire.head().await.0, StatusCode::SWITCHING_PROTOCOLS);
    wire.send("ping").await;
    assert_eq!(&*wire.exactly(4).await, b"ping");
    let mut wire = Wire::connect(server.addr).await;
    wire.send(asks("POST")).await;
    assert_eq!(wire.head().await.0, StatusCode::SERVICE_UNAVAILABLE, "an upgrade is a GET");
}

#[tokio::test]
async fn an_offer_to_speak_http2_is_no_upgrade() {
    let db = TestDb::with_connections(1).await;
    let server = Server::start(router(&db)).await;
    // What curl and Java's client send with the first request on a connection without TLS.
    let offer =
        "connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n";
    let mut wire = Wire::connect(server.addr).await;
    wire.send(head("k") + offer + "content-length: 3\r\n\r\nabc").await;
    assert_eq!(wire.answer().await.status, StatusCode::CREATED);
    assert!(server.post("k", "abc").await.is_replay());
}

#[tokio::test]
async fn a_body_that_says_it_is_too_long_is_refused_before_it_is_sent() {
    let db = TestDb::with_connections(1).await;
    let server = Server::start(router(&db)).await;
    for expect in ["", "expect: 100-continue\r\n"] {
        let mut wire = Wire::connect(server.addr).await;
        wire.send(format!("{}{expect}content-length: 1001\r\n\r\n", head("k"))).await;
        let refused = wire.answer().await;
        assert_eq!(refused.status, StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(refused.code(), "request_too_large");
    }
    assert_eq!(server.post("k", &"x".repeat(1000)).await.status, StatusCode::CREATED);
}

#[tokio::test]
async fn a_body_of_unknown_length_is_read_to_the_limit_and_no_further() {
    let db = TestDb::with_connections(1).await;
    let server = Server::start(router(&db)).await;
    for length in [1001, 100_000] {
        let mut wire = Wire::connect(server.addr).await;
        let chunk = "x".repeat(length);
        wire.send(format!("{}transfer-encoding: chunked\r\n\r\n{length:x}\r\n", head("k"))).await;
        wire.send(format!("{chunk}\r\n")).await; // without an end
        assert_eq!(wire.answer().await.code(), "request_too_large");
    }
    let mut http2 = Http2::connect(server.addr).await;
    assert_eq!(http2.post("k", &"x".repeat(1001)).await.code(), "request_too_large");
    assert_eq!(http2.post("k", &"x".repeat(1000)).await.status, StatusCode::CREATED);
}

#[tokio::test]
async fn a_client_that_waits_to_send_is_told_to_go_on() {
    let db = TestDb::with_connections(1).await;
    let server = Server::start(router(&db)).await;
    for replayed in [false, true] {
        let mut wire = Wire::connect(server.addr).await;
        wire.send(format!("{}expect: 100-continue\r\ncontent-length: 3\r\n\r\n", head("k"))).await;
        assert_eq!(wire.head().await.0, StatusCode::CONTINUE);
        wire.send("abc").await;
        let got = wire.answer().await;
        assert_eq!((got.status, got.is_replay()), (StatusCode::CREATED, replayed));
    }
    let mut wire = Wire::connect(server.addr).await;
    wire.send(format!("{}expect: 100-continue\r\ncontent-length: 3\r\n\r\n", head("\""))).await;
    assert_eq!(wire.answer().await.code(), "key_malformed", "at once");
}

#[tokio::test]
async fn duplicates_sent_in_one_go_are_answered_in_turn() {
    let db = TestDb::with_connections(1).await;
    let server = Server::start(router(&db)).await;
    let mut wire = Wire::connect(server.addr).await;
    wire.send(whole("k", "abc").repeat(3)).await;
    for replayed in [false, true, true] {
        let got = wire.answer().await;
        assert_eq!((got.status, got.is_replay()), (StatusCode::CREATED, replayed));
    }
    assert_eq!(db.effects().await, 1);
}

#[tokio::test]
async fn a_slow_upload_holds_no_connection() {
    let db = TestDb::with_connections(1).await;
    let server = Server::start(router(&db)).await;
    let mut slow = Wire::connect(server.addr).await;
    slow.send(format!("{}content-length: 6\r\n\r\nabc", head("slow"))).await;
    server.entered.until(1).await;
    assert_eq!(server.post("other", "abc").await.status, StatusCode::CREATED);
    assert_eq!(server.post("slow", "abcdef").await.status, StatusCode::CREATED, "not begun yet");
    slow.send("def").await;
    assert!(slow.answer().await.is_replay());
}

#[tokio::test]
async fn an_answer_without_a_body_is_an_answer() {
    let db = TestDb::with_connections(1).await;
    let (entered, schema) = (Count::new(), db.schema.clone());
    let came = entered.clone();
    let handler = async move |mut tx: OnceTx, body: String| {
        came.add();
        effect(&mut tx, &schema, &body).await.unwrap();
        StatusCode::from_bytes(body.as_bytes()).unwrap()
    };
    let router = Router::new().route("/", on_post(handler).layer(layer(&db)));
    let server = Server::start(router).await;
    for (at, status) in ["204", "205", "304"].into_iter().enumerate() {
        // One connection: an unannounced body would be read as the next response.
        let mut wire = Wire::connect(server.addr).await;
        for replayed in [false, true, true] {
            let got = wire.post(status, status).await;
            assert_eq!((got.status.as_str(), got.is_replay()), (status, replayed));
            assert!(got.body.is_empty());
        }
        let mut http2 = Http2::connect(server.addr).await;
        assert_eq!(http2.post(status, status).await.status.as_str(), status);
        assert_eq!(entered.get(), at + 1);
    }
}

#[tokio::test]
async fn drain_waits_for_handlers_whose_clients_have_gone() {
    let db = TestDb::with_connections(2).await;
    let idempotency = layer(&db).leased(lease(PATIENCE)).unwrap();
    let (entered, go) = (Count::new(), Count::new());
    let (came, may, schema) = (entered.clone(), go.clone(), db.schema.clone());
    let handler = async move |claim: OnceClaim| {
        came.add();
        may.until(1).await;
        effect(&mut claim.begin().await.unwrap(), &schema, "paid").await.unwrap().to_string()
    };
    let route = on_post(handler).layer(idempotency.clone());
    let server = Server::start(Router::new().route("/", route)).await;
    let mut wire = Wire::connect(server.addr).await;
    wire.send(whole("k", "")).await;
    entered.until(1).await;
    drop(wire);
    server.left.until(1).await;
    server.shut_down().await;
    let mut drained = tokio::spawn(async move { idempotency.drain().await });
    tokio::select! {
        biased;
        _ = &mut drained => panic!("the handler is still at work"),
        () = async { for _ in 0..100 { tokio::task::yield_now().await } } => {}
    }
    assert_eq!(db.effects().await, 0);
    go.add();
    drained.await.unwrap();
    let op = Operation::new("acme/test", "k").unwrap();
    assert!(is_completed(&db.once, &db, &op).await, "drain came back too early");
    assert_eq!(db.effects().await, 1);
}

async fn is_completed(once: &PgOnce, db: &TestDb, op: &Operation) -> bool {
    let found = once.inspect(&mut db.conn().await, op.scope(), op.key()).await.unwrap();
    found.is_some_and(|found| found.record.status == pgonce::Status::Completed)
}

#[tokio::test]
async fn one_answer_and_one_close_to_a_client_that_asks_for_the_end() {
    let db = TestDb::with_connections(1).await;
    let server = Server::start(router(&db)).await;
    for _ in 0..2 {
        let mut wire = Wire::connect(server.addr).await;
        wire.send(head("k") + "connection: close\r\ncontent-length: 3\r\n\r\nabc").await;
        let got = wire.answer().await;
        assert_eq!(got.header("connection"), Some("close"));
        assert_eq!(wire.stream.read(&mut [0]).await.unwrap(), 0);
    }
}
