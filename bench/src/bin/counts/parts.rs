//! The parts that need no database, one call each.

use std::hint::black_box;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use pgonce::web::{Buffered, IdempotencyLayer};
use pgonce::{Fingerprint, Key, PgOnce, Scope};
use tower::{Layer, ServiceExt, service_fn};

pub(crate) const NAMES: [&str; 7] = [
    "fingerprint of 100 bytes",
    "fingerprint of 10 kB",
    "fingerprint of JSON",
    "Key::new",
    "Key::generate",
    "request that is not covered",
    "request with a refused key",
];

const KEY: &str = "0197b5a2-6a3c-7cc1-8f7e-2b6a4c1d9e10";

#[derive(serde::Serialize)]
struct Order {
    seat: &'static str,
    amount: i64,
    currency: &'static str,
    note: Option<&'static str>,
}

/// Returns a closure that performs the part once.
pub(crate) fn part(name: &str) -> Box<dyn FnMut()> {
    match name {
        "fingerprint of 100 bytes" => of_bytes(100),
        "fingerprint of 10 kB" => of_bytes(10_000),
        "fingerprint of JSON" => Box::new(|| {
            let order = Order { seat: "17 C", amount: 4200, currency: "EUR", note: None };
            black_box(Fingerprint::of_json(black_box(&order)).unwrap());
        }),
        "Key::new" => Box::new(|| {
            black_box(Key::new(black_box(KEY)).unwrap());
        }),
        "Key::generate" => Box::new(|| {
            black_box(Key::generate());
        }),
        "request that is not covered" => request("GET"),
        "request with a refused key" => request("POST"),
        _ => panic!("no part has the name {name}"),
    }
}

fn of_bytes(bytes: usize) -> Box<dyn FnMut()> {
    let body = vec![b'x'; bytes];
    Box::new(move || {
        black_box(Fingerprint::of_bytes(black_box(&body)));
    })
}

/// A request through the HTTP layer. It ends at the key: the layer reads it from its header, refuses every key as too
/// easy to guess, and answers with a problem document.
fn request(method: &'static str) -> Box<dyn FnMut()> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let entered = runtime.enter();
    let pool = sqlx::PgPool::connect_lazy("postgres://nobody@localhost/nowhere").unwrap();
    drop(entered);
    let scope = |_: &http::request::Parts| Scope::new("bench/orders").ok();
    let layer = IdempotencyLayer::new(PgOnce::new(), pool, scope).key_entropy_min(f64::INFINITY);
    let service = layer.layer(service_fn(async |_: Request<Buffered<Full<Bytes>>>| {
        Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::new())))
    }));
    let expected = if method == "GET" { StatusCode::OK } else { StatusCode::BAD_REQUEST };
    Box::new(move || {
        let request = Request::builder()
            .method(method)
            .header("idempotency-key", format!("\"{KEY}\""))
            .body(Full::new(Bytes::new()))
            .unwrap();
        let response = runtime.block_on(service.clone().oneshot(request)).unwrap();
        assert_eq!(response.status(), expected);
    })
}
