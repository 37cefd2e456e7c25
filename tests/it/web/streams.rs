//! Streamed responses: the first caller gets the parts as they come, a retry gets *omitted*.

use std::convert::Infallible;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use axum::routing::post as on_post;
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body_util::channel::{Channel, Sender};
use http_body_util::{BodyExt, Full};
use pgonce::web::{OnceClaim, OnceTx};
use tokio::sync::mpsc;

use super::wire::{Http2, Server, Wire, answer, whole};
use super::{layer, lease};
use crate::support::db::{PATIENCE, TestDb, effect};

type Pen = Sender<Bytes, Infallible>;

/// Answers with an event stream, whose writing end comes through the channel.
fn router(db: &TestDb, leased: bool) -> (Router, mpsc::UnboundedReceiver<Pen>) {
    let (give, pens) = mpsc::unbounded_channel();
    let stream = move || {
        let (pen, paper) = Channel::<Bytes, Infallible>::new(4);
        give.send(pen).unwrap();
        Response::builder().header("content-type", "text/event-stream").body(Body::new(paper))
    };
    let (schema, layer) = (db.schema.clone(), layer(db));
    let route = if leased {
        on_post(async move |claim: OnceClaim| {
            effect(&mut claim.begin().await.unwrap(), &schema, "paid").await.unwrap();
            stream().unwrap()
        })
        .layer(layer.leased(lease(PATIENCE)).unwrap())
    } else {
        on_post(async move |mut tx: OnceTx| {
            effect(&mut tx, &schema, "paid").await.unwrap();
            stream().unwrap()
        })
        .layer(layer)
    };
    (Router::new().route("/", route), pens)
}

#[tokio::test]
async fn a_stream_is_sent_as_it_comes_and_a_retry_learns_that_it_was() {
    for leased in [false, true] {
        let db = TestDb::with_connections(1).await;
        let (router, mut pens) = router(&db, leased);
        let server = Server::start(router).await;
        let mut wire = Wire::connect(server.addr).await;
        wire.send(whole("k", "")).await;
        let (status, headers) = wire.head().await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(headers.get("transfer-encoding").unwrap(), "chunked");
        let mut pen = pens.recv().await.unwrap();
        pen.send_data("data: 1\n\n".into()).await.unwrap();
        assert_eq!(&*wire.exactly(14).await, b"9\r\ndata: 1\n\n\r\n");
        // Committed before the first byte: the retry does not wait for an end that may never come.
        for _ in 0..2 {
            let retry = server.post("k", "").await;
            assert_eq!((retry.status, retry.code()), (StatusCode::OK, "omitted".into()));
            assert!(retry.is_replay());
        }
        pen.send_data("data: 2\n\n".into()).await.unwrap();
        drop(pen);
        assert_eq!(&*wire.exactly(19).await, b"9\r\ndata: 2\n\n\r\n0\r\n\r\n");
        assert_eq!(db.effects().await, 1);
    }
}

#[tokio::test]
async fn a_stream_whose_reader_has_gone_is_done_all_the_same() {
    let db = TestDb::with_connections(1).await;
    let (router, mut pens) = router(&db, false);
    let server = Server::start(router).await;
    let mut wire = Wire::connect(server.addr).await;
    wire.send(whole("k", "")).await;
    let mut pen = pens.recv().await.unwrap();
    pen.send_data("data: 1\n\n".into()).await.unwrap();
    wire.head().await;
    drop(wire);
    while pen.send_data("data: more\n\n".into()).await.is_ok() {}
    assert_eq!(server.post("k", "").await.code(), "omitted");
    assert_eq!(db.effects().await, 1);
}

#[tokio::test]
async fn trailers_reach_the_first_caller_and_keep_the_body_out_of_the_table() {
    for streamed in [false, true] {
        let db = TestDb::with_connections(1).await;
        let schema = db.schema.clone();
        let handler = async move |mut tx: OnceTx| {
            effect(&mut tx, &schema, "paid").await.unwrap();
            let status = || {
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", "0".parse().unwrap());
                Some(Ok::<_, Infallible>(trailers))
            };
            if !streamed {
                return Response::new(Body::new(
                    Full::from("paid").with_trailers(async move { status() }),
                ));
            }
            let (mut pen, paper) = Channel::<Bytes, Infallible>::new(2);
            pen.send_data("paid".into()).await.unwrap();
            pen.send_trailers(status().unwrap().unwrap()).await.unwrap();
            Response::new(Body::new(paper))
        };
        let route = on_post(handler).layer(layer(&db));
        let server = Server::start(Router::new().route("/", route)).await;
        let mut http2 = Http2::connect(server.addr).await;
        let (response, mut stream) = http2.begin("k").await;
        stream.send_data(Bytes::new(), true).unwrap();
        let (first, trailers) = answer(response).await;
        assert_eq!((first.status, &*first.body), (StatusCode::OK, &b"paid"[..]));
        assert_eq!(trailers.unwrap().get("grpc-status").unwrap(), "0");
        let (response, mut stream) = http2.begin("k").await;
        stream.send_data(Bytes::new(), true).unwrap();
        let (retry, trailers) = answer(response).await;
        assert_eq!((retry.code(), trailers), ("omitted".into(), None));
        assert_eq!(db.effects().await, 1);
    }
}

#[tokio::test]
async fn a_requests_trailers_reach_the_handler() {
    let db = TestDb::with_connections(1).await;
    let handler = async move |_: OnceTx, body: Body| {
        let body = body.collect().await.unwrap();
        let trailer = body.trailers().unwrap().get("digest").unwrap().clone();
        format!("{} bytes, {}", body.to_bytes().len(), trailer.to_str().unwrap())
    };
    let route = on_post(handler).layer(layer(&db));
    let server = Server::start(Router::new().route("/", route)).await;
    let mut http2 = Http2::connect(server.addr).await;
    let (response, mut stream) = http2.begin("k").await;
    stream.send_data("abc".into(), false).unwrap();
    let mut trailers = HeaderMap::new();
    trailers.insert("digest", "d".parse().unwrap());
    stream.send_trailers(trailers).unwrap();
    assert_eq!(&*answer(response).await.0.body, b"3 bytes, d");
}
