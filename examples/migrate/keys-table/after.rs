//! Takes payments. pgonce stores key, payment and response in one transaction.

use std::env;
use std::future::pending;
use std::time::Duration;

use axum::extract::Request;
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::routing::post;
use axum::{Extension, Json, Router};
use pgonce::web::{IdempotencyLayer, OnceTx, RequestFingerprint};
use pgonce::{PgOnce, Policy, Reaper, Scope};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use tokio::net::TcpListener;

#[derive(Clone)]
struct User(String);

#[derive(Deserialize)]
struct Order {
    cents: i64,
}

#[derive(Serialize)]
struct Payment {
    id: i64,
    cents: i64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let pool = PgPool::connect(&env::var("DATABASE_URL")?).await?;
    sqlx::raw_sql(include_str!("schema.sql")).execute(&pool).await?;
    let once = PgOnce::new();
    let (reaper, reapers_pool) = (Reaper::new(&once), pool.clone());
    tokio::spawn(async move { reaper.run_until(reapers_pool, pending::<()>()).await });
    let policy = Policy::new().retention(Duration::from_secs(7 * 86_400))?; // longer than clients retry
    let fingerprint = RequestFingerprint::new().canonical_json(); // as in release 1
    let idempotency = IdempotencyLayer::new(once, pool, scope).policy(policy)?;
    let idempotency = idempotency.fingerprint(fingerprint);
    let app =
        Router::new().route("/payments", post(pay).layer(idempotency)).layer(from_fn(authenticate));
    let address = env::var("LISTEN").unwrap_or_else(|_| "127.0.0.1:3000".to_owned());
    axum::serve(TcpListener::bind(address).await?, app).await?;
    Ok(())
}

/// The gateway in front has checked who the user is.
async fn authenticate(mut request: Request, next: Next) -> Result<Response, StatusCode> {
    let user = request.headers().get("x-user").and_then(|user| user.to_str().ok());
    let user = User(user.ok_or(StatusCode::UNAUTHORIZED)?.to_owned());
    request.extensions_mut().insert(user);
    Ok(next.run(request).await)
}

/// A key belongs to a user and a route.
fn scope(request: &Parts) -> Option<Scope> {
    let User(user) = request.extensions.get()?;
    Some(Scope::of([user, "payments"]))
}

async fn pay(
    mut tx: OnceTx,
    Extension(User(user)): Extension<User>,
    Json(order): Json<Order>,
) -> Result<(StatusCode, Json<Payment>), StatusCode> {
    let insert = "insert into payment (user_id, cents) values ($1, $2) returning id";
    let insert = sqlx::query_scalar(insert).bind(user).bind(order.cents);
    let id = insert.fetch_one(&mut *tx).await.map_err(internal)?;
    Ok((StatusCode::CREATED, Json(Payment { id, cents: order.cents })))
}

fn internal(error: impl std::fmt::Display) -> StatusCode {
    eprintln!("{error}");
    StatusCode::INTERNAL_SERVER_ERROR
}
