//! Takes payments. A middleware keeps the responses in memory, by the header `Idempotency-Key`.
//! pgonce stands behind it.

use std::collections::HashMap;
use std::env;
use std::future::pending;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{Response as HttpResponse, StatusCode};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::Response;
use axum::routing::post;
use axum::{Extension, Json, Router};
use pgonce::web::{IdempotencyLayer, OnceTx};
use pgonce::{History, PgOnce, Reaper, Rollout, Scope};
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
    let cached = from_fn_with_state(Cache::default(), cached);
    let app = Router::new()
        .route("/payments", post(pay).layer(idempotency).layer(cached))
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

const KEPT: Duration = Duration::from_secs(24 * 3600);

type Cache = Arc<Mutex<HashMap<String, (Instant, HttpResponse<Bytes>)>>>;

async fn cached(
    State(cache): State<Cache>,
    Extension(User(user)): Extension<User>,
    request: Request,
    next: Next,
) -> Result<Response, StatusCode> {
    let key = request.headers().get("idempotency-key").and_then(|key| key.to_str().ok());
    let Some(key) = key.map(|key| format!("{user}:{key}")) else {
        return Ok(next.run(request).await);
    };
    let kept = cache.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
    if let Some((at, response)) = kept
        && at.elapsed() < KEPT
    {
        return Ok(response.map(Body::from));
    }
    let response = next.run(request).await;
    if !response.status().is_success() {
        return Ok(response);
    }
    let (parts, body) = response.into_parts();
    let body = to_bytes(body, usize::MAX).await.map_err(internal)?;
    let response = HttpResponse::from_parts(parts, body);
    let mut cache = cache.lock().unwrap_or_else(PoisonError::into_inner);
    cache.retain(|_, (at, _)| at.elapsed() < KEPT);
    cache.insert(key, (Instant::now(), response.clone()));
    Ok(response.map(Body::from))
}

fn internal(error: impl std::fmt::Display) -> StatusCode {
    eprintln!("{error}");
    StatusCode::INTERNAL_SERVER_ERROR
}
