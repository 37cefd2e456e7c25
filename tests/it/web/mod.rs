//! The HTTP layer. Most tests call the router in process; `sockets` and the modules after it use TCP.

mod bodies;
mod bound;
mod classified;
mod commits;
mod concurrency;
mod derived;
mod example;
mod fingerprints;
mod handler_test;
mod hangups;
mod hyper;
mod keys;
mod kill;
pub mod kit;
mod layers;
mod leases;
mod loose_ends;
mod nobody_knows;
mod omitted;
mod page;
mod payments;
mod policy;
mod presets;
mod replays;
mod retryable;
mod rollout;
mod round_trip;
mod run_errors;
mod scopes;
pub mod secrets;
mod single_packet;
mod sockets;
mod stacks;
mod statuses;
mod store;
mod streams;
mod transactional;
mod twice;
mod unknown;
mod unused;
mod walkthrough;
mod wire;

use std::convert::Infallible;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use pgonce::web::{Answer, IdempotencyLayer};
use pgonce::{Lease, Scope};
use tower::ServiceExt;

use crate::support::db::TestDb;

pub fn layer(db: &TestDb) -> IdempotencyLayer {
    IdempotencyLayer::new(db.once.clone(), db.pool.clone(), scoped)
}

pub fn lease(length: Duration) -> Lease {
    Lease::new(length).unwrap()
}

pub fn scoped(request: &Parts) -> Option<Scope> {
    let tenant = request.headers.get("x-tenant")?.to_str().ok()?;
    Scope::new(format!("{tenant}/test")).ok()
}

#[derive(Debug, Clone)]
pub struct Got {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// The layer's answer, if the request went through one.
    pub answer: Option<Answer>,
}

impl Got {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub fn is_replay(&self) -> bool {
        self.header("idempotent-replayed") == Some("true")
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).expect("a JSON body")
    }

    pub fn code(&self) -> String {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        self.json()["code"].as_str().expect("a code").to_owned()
    }
}

pub fn post(key: &str, body: impl Into<Body>) -> Request<Body> {
    Request::post("/")
        .header("x-tenant", "acme")
        .header("idempotency-key", key)
        .body(body.into())
        .unwrap()
}

pub async fn send(router: &Router, request: Request<Body>) -> Got {
    let sent: Result<_, Infallible> = router.clone().oneshot(request).await;
    let (parts, body) = sent.unwrap().into_parts();
    let body = body.collect().await.expect("a whole body").to_bytes();
    let answer = parts.extensions.get().copied();
    Got { status: parts.status, headers: parts.headers, body, answer }
}
