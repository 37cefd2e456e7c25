//! The HTTP layer without axum, on hyper: `cargo run --example hyper`.
//!
//! Listens on 127.0.0.1:`PORT` (3000), HTTP/1.1 and HTTP/2. Uses `DATABASE_URL`, or a temporary PostgreSQL. Send this
//! twice, then with another amount:
//!
//! ```sh
//! curl -i 127.0.0.1:3000 -H 'Authorization: Bearer acme' -H 'Idempotency-Key: order-17' -d 100
//! ```

#![allow(missing_docs, missing_debug_implementations, reason = "a program, not an API")]

use std::convert::Infallible;

use bytes::Bytes;
use http::header::{AUTHORIZATION, LOCATION};
use http::request::Parts;
use http::{Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use pgonce::web::{Buffered, IdempotencyLayer, OnceTx};
use pgonce::{PgOnce, Scope};
use pgonce_testing::{Database, Options};
use sqlx::PgPool;
use tokio::net::TcpListener;
use tower::{Layer, ServiceExt, service_fn};

type Error = Box<dyn std::error::Error + Send + Sync>;

/// The caller. The authentication adds it to the request.
#[derive(Clone)]
struct Tenant(String);

/// The handler. Its writes through the transaction commit together with the key and the response.
async fn create_payment(request: Request<Buffered<Incoming>>) -> Result<Response<String>, Error> {
    let mut tx = OnceTx::of(request.extensions())?;
    let amount = request.into_body().collect().await?.to_bytes();
    let Some(amount) = std::str::from_utf8(&amount).ok().and_then(|text| text.parse::<i64>().ok())
    else {
        return Ok(Response::builder().status(400).body("send an amount".to_owned())?);
    };
    let sql = "insert into hyper_payment (amount) values ($1) returning id";
    let id: i64 = sqlx::query_scalar(sql).bind(amount).fetch_one(&mut *tx).await?;
    let created = Response::builder().status(StatusCode::CREATED);
    Ok(created.header(LOCATION, format!("/payments/{id}")).body(format!("payment {id}\n"))?)
}

/// Turns an error into a 500: the handler's writes are rolled back, and the key is free again.
async fn handle(request: Request<Buffered<Incoming>>) -> Result<Response<Full<Bytes>>, Infallible> {
    let response = create_payment(request).await.unwrap_or_else(|error| {
        eprintln!("{error}");
        let mut response = Response::new(String::new());
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        response
    });
    Ok(response.map(Full::from))
}

/// Serves until stopped: authentication outside, then the layer, then the handler.
pub async fn serve(listener: TcpListener, pool: PgPool, once: PgOnce) -> Result<(), Error> {
    let idempotency = IdempotencyLayer::new(once, pool, |request: &Parts| {
        let Tenant(name) = request.extensions.get()?;
        Some(Scope::of([name, "payments.create"]))
    });
    let payments = idempotency.layer(service_fn(handle));
    let service = service_fn(move |mut request: Request<Incoming>| {
        let payments = payments.clone();
        async move {
            let Some(tenant) = tenant_of(&request) else { return Ok(unauthorized()) };
            request.extensions_mut().insert(tenant);
            payments.oneshot(request).await.map(|response| response.map(BodyExt::boxed))
        }
    });
    loop {
        let (stream, _) = listener.accept().await?;
        let service = TowerToHyperService::new(service.clone());
        tokio::spawn(async move {
            let builder = auto::Builder::new(TokioExecutor::new());
            if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
                eprintln!("{error}");
            }
        });
    }
}

/// Accepts any name. A real program checks a token here.
fn tenant_of<B>(request: &Request<B>) -> Option<Tenant> {
    let bearer = request.headers().get(AUTHORIZATION)?.to_str().ok()?;
    bearer.strip_prefix("Bearer ").map(|name| Tenant(name.to_owned()))
}

fn unauthorized() -> Response<BoxBody<Bytes, Infallible>> {
    let mut response = Response::new(Empty::new().boxed());
    *response.status_mut() = StatusCode::UNAUTHORIZED;
    response
}

pub async fn prepare(pool: &PgPool, once: &PgOnce) -> Result<(), Error> {
    once.migrate(&mut *pool.acquire().await?).await?;
    sqlx::query(
        "create table if not exists hyper_payment
           (id bigint generated always as identity, amount bigint)",
    )
    .execute(pool)
    .await?;
    Ok(())
}

#[tokio::main]
#[allow(dead_code, reason = "a test includes this file and calls serve")]
async fn main() -> Result<(), Error> {
    let database = Database::from_env(&Options::new()).await?;
    let pool = PgPool::connect_with(database.connect_options()).await?;
    let once = PgOnce::new();
    prepare(&pool, &once).await?;
    let port = std::env::var("PORT").unwrap_or_else(|_| "3000".to_owned());
    let listener = TcpListener::bind(format!("127.0.0.1:{port}")).await?;
    println!("listening on {}", listener.local_addr()?);
    serve(listener, pool, once).await
}
