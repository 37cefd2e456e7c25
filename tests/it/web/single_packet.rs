//! Thirty duplicates in one segment on one HTTP/2 connection: only pgonce can race, not the network.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::routing::post as on_post;
use bytes::Bytes;
use http::StatusCode;
use pgonce::web::{IdempotencyLayer, OnceClaim, OnceTx};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::wire::{Count, Http2, Server, answer};
use super::{Got, layer, lease};
use crate::support::db::{PATIENCE, TestDb, effect, waits};

const DUPLICATES: usize = 30;

/// Sends the same POST many times, all written at once before a response is read. Returns the responses as they arrive.
async fn at_once(addr: SocketAddr, key: &str) -> mpsc::UnboundedReceiver<Got> {
    let (near, mut far) = tokio::io::duplex(1 << 20);
    let mut client = Http2::over(near).await;
    let (told, answers) = mpsc::unbounded_channel();
    for _ in 0..DUPLICATES {
        let (response, mut stream) = client.begin(key).await;
        stream.send_data(Bytes::from_static(b"amount=100"), true).unwrap();
        let told = told.clone();
        tokio::spawn(async move { told.send(answer(response).await.0) });
    }
    let mut packet = Vec::new();
    while ended_streams(&packet) < DUPLICATES {
        far.read_buf(&mut packet).await.unwrap();
    }
    let mut server = TcpStream::connect(addr).await.unwrap();
    server.write_all(&packet).await.unwrap();
    tokio::spawn(async move {
        let _client = client;
        tokio::io::copy_bidirectional(&mut far, &mut server).await
    });
    answers
}

/// How many requests in these bytes are complete: the frames that end their stream.
fn ended_streams(sent: &[u8]) -> usize {
    const PREFACE: usize = 24;
    let mut frames = sent.get(PREFACE..).unwrap_or_default();
    let mut ended = 0;
    while let [a, b, c, kind, flags, rest @ ..] = frames {
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize + 4; // and the stream's number
        let Some(after) = rest.get(length..) else { break };
        ended += usize::from(*kind <= 1 && flags & 1 == 1);
        frames = after;
    }
    ended
}

async fn all(mut answers: mpsc::UnboundedReceiver<Got>) -> Vec<Got> {
    let mut all = Vec::new();
    while let Some(got) = answers.recv().await {
        all.push(got);
    }
    assert_eq!(all.len(), DUPLICATES);
    all
}

fn transactional(
    db: &TestDb,
    idempotency: IdempotencyLayer,
    entered: &Count,
    go: &Count,
) -> Router {
    let (schema, entered, go) = (db.schema.clone(), entered.clone(), go.clone());
    let handler = async move |mut tx: OnceTx| {
        entered.add();
        go.until(1).await;
        let id = effect(&mut tx, &schema, "paid").await.unwrap();
        (StatusCode::CREATED, format!("payment {id}"))
    };
    Router::new().route("/", on_post(handler).layer(idempotency))
}

fn leased(db: &TestDb, idempotency: IdempotencyLayer, entered: &Count, go: &Count) -> Router {
    let (schema, entered, go) = (db.schema.clone(), entered.clone(), go.clone());
    let handler = async move |claim: OnceClaim| {
        entered.add();
        go.until(1).await;
        let mut tx = claim.begin().await.unwrap();
        let id = effect(&mut tx, &schema, "paid").await.unwrap();
        (StatusCode::CREATED, format!("payment {id}"))
    };
    Router::new().route("/", on_post(handler).layer(idempotency.leased(lease(PATIENCE)).unwrap()))
}

type Make = fn(&TestDb, IdempotencyLayer, &Count, &Count) -> Router;
const MODES: [(&str, Make); 2] = [("transactional", transactional), ("leased", leased)];

#[tokio::test]
async fn thirty_at_once_are_one_effect_and_the_rest_are_told() {
    for (mode, router) in MODES {
        let db = TestDb::with_connections(4).await;
        let (entered, go) = (Count::new(), Count::new());
        go.add();
        let server = Server::start(router(&db, layer(&db), &entered, &go)).await;
        let answers = all(at_once(server.addr, "k").await).await;
        let (busy, answered): (Vec<_>, Vec<_>) =
            answers.iter().partition(|got| got.status == StatusCode::CONFLICT);
        assert_eq!(answered.iter().filter(|got| !got.is_replay()).count(), 1, "{mode}");
        assert!(answered.iter().all(|got| got.status == StatusCode::CREATED));
        assert!(answered.iter().all(|got| got.body == answered[0].body));
        for got in busy {
            assert_eq!(got.code(), "in_progress");
            assert!(got.header("retry-after").is_some_and(|after| after.parse::<u32>().is_ok()));
        }
        assert_eq!(db.effects().await, 1, "{mode}");
        // A look may be older than its lock: then a handler runs for a finished key, and is rolled back.
        assert!(entered.get() == 1 || mode == "transactional", "{mode}");
    }
}

#[tokio::test]
async fn thirty_at_once_that_may_wait_all_get_the_same_answer() {
    for (mode, router) in MODES {
        let db = TestDb::with_connections(2).await;
        let (entered, go) = (Count::new(), Count::new());
        let idempotency = layer(&db).policy(waits(PATIENCE)).unwrap().waiters_max(DUPLICATES);
        let server = Server::start(router(&db, idempotency, &entered, &go)).await;
        let answers = at_once(server.addr, "k").await;
        server.entered.until(DUPLICATES).await;
        go.add();
        let answers = all(answers).await;
        assert!(answers.iter().all(|got| got.status == StatusCode::CREATED), "{mode}: {answers:?}");
        assert!(answers.iter().all(|got| got.body == answers[0].body));
        assert_eq!(answers.iter().filter(|got| !got.is_replay()).count(), 1, "{mode}");
        assert_eq!(db.effects().await, 1, "{mode}");
        // A look may be older than its lock: then a handler runs for a finished key, and is rolled back.
        assert!(entered.get() == 1 || mode == "transactional", "{mode}");
    }
}

#[tokio::test]
async fn more_than_may_wait_are_told_at_once_and_another_key_is_not_held_up() {
    const WAITERS: usize = 16; // the default
    let db = TestDb::with_connections(2).await;
    let (entered, go) = (Count::new(), Count::new());
    let idempotency = layer(&db).policy(waits(PATIENCE)).unwrap();
    let slow = transactional(&db, idempotency.clone(), &entered, &go);
    let quick = async move |_: OnceTx| "quick";
    let quick = Router::new().route("/quick", on_post(quick).layer(idempotency));
    let server = Server::start(slow.merge(quick)).await;
    let mut answers = at_once(server.addr, "k").await;
    for _ in WAITERS + 1..DUPLICATES {
        let got = tokio::time::timeout(PATIENCE, answers.recv()).await.unwrap().unwrap();
        assert_eq!(got.status, StatusCode::CONFLICT);
    }
    let request = super::wire::whole("other", "").replace("POST / ", "POST /quick ");
    let mut wire = super::wire::Wire::connect(server.addr).await;
    wire.send(request).await;
    let got = tokio::time::timeout(Duration::from_secs(5), wire.answer()).await.expect("no delay");
    assert_eq!((got.status, &*got.body), (StatusCode::OK, &b"quick"[..]));
    go.add();
    for _ in 0..=WAITERS {
        assert_eq!(answers.recv().await.unwrap().status, StatusCode::CREATED);
    }
    assert_eq!(db.effects().await, 1);
}
