//! Takes payments. The old table of keys is written in pgonce's transaction.

use std::env;
use std::future::pending;
use std::time::Duration;

use anyhow::Context;
use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header::LOCATION};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Extension, Json, Router};
use pgonce::web::{IdempotencyLayer, OnceTx, Settle};
use pgonce::{PgOnce, Policy, Reaper, Scope};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use sqlx::postgres::PgPoolOptions;
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

#[derive(sqlx::Type)]
#[sqlx(type_name = "header_pair")]
struct HeaderPair {
    name: String,
    value: Vec<u8>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let pool = PgPoolOptions::new().max_connections(5).acquire_timeout(Duration::from_secs(3));
    let pool = pool.connect(&env::var("DATABASE_URL")?).await?;
    sqlx::raw_sql(include_str!("schema.sql")).execute(&pool).await?;
    let policy = Policy::new().wait(Duration::from_secs(2))?; // for a duplicate
    let policy = policy.retention(Duration::from_secs(7 * 86_400))?; // longer than clients retry
    let once = PgOnce::new();
    let (reaper, reapers_pool) = (Reaper::new(&once), pool.clone());
    tokio::spawn(async move { reaper.run_until(reapers_pool, pending::<()>()).await });
    let idempotency = IdempotencyLayer::new(once, pool, scope).policy(policy)?;
    let idempotency = idempotency.final_statuses(|_| false); // a 4xx runs again
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
    match try_processing(&mut tx, &user, key).await.map_err(internal)? {
        NextAction::StartProcessing => {}
        NextAction::ReturnSavedResponse(response) => {
            return Ok((Settle::Release, response).into_response());
        }
    }
    let insert = "insert into payment (user_id, cents) values ($1, $2) returning id";
    let insert = sqlx::query_scalar(insert).bind(&user).bind(order.cents);
    let id: i64 = insert.fetch_one(&mut *tx).await.map_err(internal)?;
    let payment = Json(Payment { id, cents: order.cents });
    let location = [(LOCATION, format!("/payments/{id}"))];
    let response = (StatusCode::CREATED, location, payment).into_response();
    save_response(&mut tx, &user, key, response).await.map_err(internal)
}

enum NextAction {
    StartProcessing,
    ReturnSavedResponse(Response),
}

async fn try_processing(
    tx: &mut PgConnection,
    user: &str,
    key: &str,
) -> anyhow::Result<NextAction> {
    let insert = "insert into idempotency (user_id, idempotency_key, created_at)
                  values ($1, $2, now()) on conflict do nothing";
    let inserted = sqlx::query(insert).bind(user).bind(key).execute(&mut *tx).await?;
    if inserted.rows_affected() == 1 {
        return Ok(NextAction::StartProcessing);
    }
    let saved = get_saved_response(tx, user, key).await?;
    Ok(NextAction::ReturnSavedResponse(saved.context("no saved response")?))
}

async fn get_saved_response(
    tx: &mut PgConnection,
    user: &str,
    key: &str,
) -> anyhow::Result<Option<Response>> {
    let look = "select response_status_code, response_headers, response_body from idempotency
                 where user_id = $1 and idempotency_key = $2";
    let saved = sqlx::query_as(look).bind(user).bind(key).fetch_optional(tx).await?;
    let Some((status, headers, body)): Option<(i16, Vec<HeaderPair>, Vec<u8>)> = saved else {
        return Ok(None);
    };
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = StatusCode::from_u16(status.try_into()?)?;
    for HeaderPair { name, value } in headers {
        let name = HeaderName::from_bytes(name.as_bytes())?;
        response.headers_mut().append(name, HeaderValue::from_bytes(&value)?);
    }
    Ok(Some(response))
}

async fn save_response(
    tx: &mut PgConnection,
    user: &str,
    key: &str,
    response: Response,
) -> anyhow::Result<Response> {
    let (parts, body) = response.into_parts();
    let body = to_bytes(body, usize::MAX).await?;
    let pair = |(name, value): (&HeaderName, &HeaderValue)| HeaderPair {
        name: name.to_string(),
        value: value.as_bytes().to_owned(),
    };
    let save = "update idempotency
                   set response_status_code = $3, response_headers = $4, response_body = $5
                 where user_id = $1 and idempotency_key = $2";
    let save = sqlx::query(save).bind(user).bind(key).bind(i16::try_from(parts.status.as_u16())?);
    let save = save.bind(parts.headers.iter().map(pair).collect::<Vec<_>>()).bind(&body[..]);
    save.execute(tx).await?;
    Ok(Response::from_parts(parts, Body::from(body)))
}

fn internal(error: impl std::fmt::Display) -> StatusCode {
    eprintln!("{error}");
    StatusCode::INTERNAL_SERVER_ERROR
}
