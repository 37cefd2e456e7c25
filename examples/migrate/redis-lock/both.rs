//! Takes payments. A middleware takes a lock in Redis for the header `Idempotency-Key`, and keeps the response there.
//! pgonce stands behind it.

use std::env;
use std::future::pending;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Extension, Json, Router};
use pgonce::web::{IdempotencyLayer, OnceTx};
use pgonce::{History, PgOnce, Reaper, Rollout, Scope};
use redis::aio::MultiplexedConnection;
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
    let rollout = Rollout::new();
    let history = History::new(Duration::from_secs(90 * 86_400))?;
    let once = PgOnce::new().rollout(&rollout).keep_history(&history);
    rollout.read(&once, &mut *pool.acquire().await?).await?;
    tokio::spawn(in_background(rollout, history, once.clone(), pool.clone()));
    let idempotency = IdempotencyLayer::new(once, pool, scope).observe();
    let idempotency = idempotency.final_statuses(|_| false); // a 4xx runs again, as before
    let redis = redis::Client::open(env::var("REDIS_URL")?)?;
    let locked = from_fn_with_state(redis.get_multiplexed_async_connection().await?, locked);
    let app = Router::new()
        .route("/payments", post(pay).layer(idempotency).layer(locked))
        .layer(from_fn(authenticate));
    let address = env::var("LISTEN").unwrap_or_else(|_| "127.0.0.1:3000".to_owned());
    axum::serve(TcpListener::bind(address).await?, app).await?;
    Ok(())
}

/// Reads the rollout modes, writes the counts, and deletes keys past their retention.
async fn in_background(rollout: Rollout, history: History, once: PgOnce, pool: PgPool) {
    let reaper = Reaper::new(&once);
    tokio::join!(
        rollout.run_until(&once, pool.clone(), pending::<()>()),
        history.run_until(&once, pool.clone(), pending::<()>()),
        reaper.run_until(pool.clone(), pending::<()>()),
    );
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

const LOCKED_SECONDS: u64 = 30;
const KEPT_SECONDS: u64 = 24 * 3600;

async fn locked(
    State(mut redis): State<MultiplexedConnection>,
    Extension(User(user)): Extension<User>,
    request: Request,
    next: Next,
) -> Result<Response, StatusCode> {
    let key = request.headers().get("idempotency-key").and_then(|key| key.to_str().ok());
    let Some(key) = key.map(|key| format!("idempotency:{user}:{key}")) else {
        return Ok(next.run(request).await);
    };
    let mut lock = redis::cmd("SET");
    lock.arg(&key).arg("running").arg("NX").arg("EX").arg(LOCKED_SECONDS);
    let lock: Option<String> = lock.query_async(&mut redis).await.map_err(internal)?;
    if lock.is_none() {
        let get = redis::cmd("GET").arg(&key).query_async(&mut redis).await;
        let kept: Option<String> = get.map_err(internal)?;
        return kept.and_then(|kept| response(&kept)).ok_or(StatusCode::CONFLICT);
    }
    let response = next.run(request).await;
    if !response.status().is_success() {
        let unlock = redis::cmd("DEL").arg(&key).query_async(&mut redis).await;
        return unlock.map(|()| response).map_err(internal);
    }
    let (parts, body) = response.into_parts();
    let body = to_bytes(body, usize::MAX).await.map_err(internal)?;
    let kept = format!("{} {}", parts.status.as_u16(), String::from_utf8_lossy(&body));
    let mut keep = redis::cmd("SET");
    let keep = keep.arg(&key).arg(kept).arg("EX").arg(KEPT_SECONDS).query_async(&mut redis).await;
    keep.map(|()| Response::from_parts(parts, Body::from(body))).map_err(internal)
}

/// The response that was kept; none while the first request runs.
fn response(kept: &str) -> Option<Response> {
    let (status, body) = kept.split_once(' ')?;
    let status = StatusCode::from_bytes(status.as_bytes()).ok()?;
    Some((status, [(header::CONTENT_TYPE, "application/json")], body.to_owned()).into_response())
}

fn internal(error: impl std::fmt::Display) -> StatusCode {
    eprintln!("{error}");
    StatusCode::INTERNAL_SERVER_ERROR
}
