//! Takes payments. The old table of keys is written in pgonce's transaction.

use std::env;
use std::future::pending;
use std::time::Duration;

use axum::extract::Request;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Extension, Json, Router};
use pgonce::web::{IdempotencyLayer, OnceTx, RequestFingerprint, Settle};
use pgonce::{PgOnce, Policy, Reaper, Scope};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::{PgConnection, PgPool};
use tokio::net::TcpListener;

#[derive(Clone)]
struct User(String);

#[derive(Serialize, Deserialize)]
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
    let fingerprint = RequestFingerprint::new().canonical_json(); // the old table compares jsonb
    let idempotency = IdempotencyLayer::new(once, pool, scope).policy(policy)?;
    let idempotency = idempotency.fingerprint(fingerprint).final_statuses(|_| false);
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
    headers: HeaderMap,
    Json(order): Json<Order>,
) -> Result<Response, StatusCode> {
    let key = headers.get("idempotency-key").and_then(|key| key.to_str().ok());
    let key = key.ok_or(StatusCode::BAD_REQUEST)?;
    if let Some(response) = locked(&mut tx, &user, key, &order).await.map_err(internal)? {
        return Ok(response);
    }
    let insert = "insert into payment (user_id, cents) values ($1, $2) returning id";
    let insert = sqlx::query_scalar(insert).bind(&user).bind(order.cents);
    let id = insert.fetch_one(&mut *tx).await.map_err(internal)?;
    let payment = Payment { id, cents: order.cents };
    finish(&mut tx, &user, key, &payment).await.map_err(internal)?;
    Ok((StatusCode::CREATED, Json(payment)).into_response())
}

/// Locks a key that is new. Otherwise returns what to answer.
async fn locked(
    tx: &mut PgConnection,
    user: &str,
    key: &str,
    order: &Order,
) -> anyhow::Result<Option<Response>> {
    let request = serde_json::to_value(order)?;
    let lock = "insert into idempotency_keys (user_id, key, request, locked_at)
                values ($1, $2, $3, now()) on conflict (user_id, key) do nothing";
    let lock = sqlx::query(lock).bind(user).bind(key).bind(&request);
    if lock.execute(&mut *tx).await?.rows_affected() == 1 {
        return Ok(None);
    }
    let look = "select request = $3, response_code, response_body from idempotency_keys
                 where user_id = $1 and key = $2";
    let look = sqlx::query_as(look).bind(user).bind(key).bind(&request);
    let (is_same, code, body): (bool, Option<i32>, Option<Value>) = look.fetch_one(tx).await?;
    Ok(Some(match code {
        _ if !is_same => (StatusCode::UNPROCESSABLE_ENTITY, Settle::Release, ()).into_response(),
        None => (StatusCode::CONFLICT, Settle::Release, ()).into_response(),
        Some(code) => {
            (StatusCode::from_u16(code.try_into()?)?, Settle::Release, Json(body)).into_response()
        }
    }))
}

async fn finish(
    tx: &mut PgConnection,
    user: &str,
    key: &str,
    payment: &Payment,
) -> anyhow::Result<()> {
    let finish = "update idempotency_keys
                     set locked_at = null, response_code = $3, response_body = $4
                   where user_id = $1 and key = $2";
    let finish = sqlx::query(finish).bind(user).bind(key);
    let finish = finish.bind(i32::from(StatusCode::CREATED.as_u16()));
    finish.bind(serde_json::to_value(payment)?).execute(tx).await?;
    Ok(())
}

fn internal(error: impl std::fmt::Display) -> StatusCode {
    eprintln!("{error}");
    StatusCode::INTERNAL_SERVER_ERROR
}
