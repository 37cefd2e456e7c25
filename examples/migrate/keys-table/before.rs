//! Takes payments. A table has the header `Idempotency-Key`: locked before the payment, with the response after it.

use std::env;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Extension, Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::PgPool;
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
    let app =
        Router::new().route("/payments", post(pay)).layer(from_fn(authenticate)).with_state(pool);
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

async fn pay(
    State(pool): State<PgPool>,
    Extension(User(user)): Extension<User>,
    headers: HeaderMap,
    Json(order): Json<Order>,
) -> Result<Response, StatusCode> {
    let key = headers.get("idempotency-key").and_then(|key| key.to_str().ok());
    let key = key.ok_or(StatusCode::BAD_REQUEST)?;
    if let Some(response) = locked(&pool, &user, key, &order).await.map_err(internal)? {
        return Ok(response);
    }
    let insert = "insert into payment (user_id, cents) values ($1, $2) returning id";
    let insert = sqlx::query_scalar(insert).bind(&user).bind(order.cents);
    let id = insert.fetch_one(&pool).await.map_err(internal)?;
    let payment = Payment { id, cents: order.cents };
    finish(&pool, &user, key, &payment).await.map_err(internal)?;
    Ok((StatusCode::CREATED, Json(payment)).into_response())
}

/// Locks a key that is new, or was locked too long ago. Otherwise returns what to answer.
async fn locked(
    pool: &PgPool,
    user: &str,
    key: &str,
    order: &Order,
) -> anyhow::Result<Option<Response>> {
    let request = serde_json::to_value(order)?;
    let lock = "insert into idempotency_keys as k (user_id, key, request, locked_at)
                values ($1, $2, $3, now())
                on conflict (user_id, key) do update set locked_at = now()
                 where k.request = excluded.request and k.locked_at < now() - interval '90 s'";
    let lock = sqlx::query(lock).bind(user).bind(key).bind(&request);
    if lock.execute(pool).await?.rows_affected() == 1 {
        return Ok(None);
    }
    let look = "select request = $3, response_code, response_body from idempotency_keys
                 where user_id = $1 and key = $2";
    let look = sqlx::query_as(look).bind(user).bind(key).bind(&request);
    let (is_same, code, body): (bool, Option<i32>, Option<Value>) = look.fetch_one(pool).await?;
    Ok(Some(match code {
        _ if !is_same => StatusCode::UNPROCESSABLE_ENTITY.into_response(),
        None => StatusCode::CONFLICT.into_response(),
        Some(code) => (StatusCode::from_u16(code.try_into()?)?, Json(body)).into_response(),
    }))
}

async fn finish(pool: &PgPool, user: &str, key: &str, payment: &Payment) -> anyhow::Result<()> {
    let finish = "update idempotency_keys
                     set locked_at = null, response_code = $3, response_body = $4
                   where user_id = $1 and key = $2";
    let finish = sqlx::query(finish).bind(user).bind(key);
    let finish = finish.bind(i32::from(StatusCode::CREATED.as_u16()));
    finish.bind(serde_json::to_value(payment)?).execute(pool).await?;
    Ok(())
}

fn internal(error: impl std::fmt::Display) -> StatusCode {
    eprintln!("{error}");
    StatusCode::INTERNAL_SERVER_ERROR
}
