//! A payment interface with idempotency keys, described by OpenAPI, for browsers of another origin.

mod problem;

use std::time::Duration;

use axum::extract::DefaultBodyLimit;
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::routing::{get, post};
use axum::{Json, Router};
use pgonce::web::{IdempotencyLayer, OnceTx};
use pgonce::{PgOnce, Scope};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use tower_http::cors::CorsLayer;
use utoipa::{OpenApi, ToSchema};

use crate::problem::{IdempotencyAnswers, Problem};

/// The example's table.
pub const SCHEMA: &str =
    "create table if not exists payment (id bigint generated always as identity, cents bigint)";

#[derive(Deserialize, ToSchema)]
struct Order {
    /// What to pay.
    #[schema(minimum = 1)]
    cents: i64,
}

#[derive(Serialize, ToSchema)]
struct Payment {
    id: i64,
    cents: i64,
}

/// The description. Generators of clients read it.
#[derive(OpenApi, Debug)]
#[openapi(paths(pay), components(schemas(Problem)), info(title = "Payments", version = "1"))]
struct Description;

/// Pays once per key.
#[utoipa::path(
    post,
    path = "/payments",
    request_body = Order,
    params((
        "Idempotency-Key" = String, Header,
        description = "One key per payment, the same in all its retries, such as a UUID. Remembered for 24 hours.",
        min_length = 1, max_length = 255,
    )),
    responses(
        (status = 201, description = "Paid, now or by an earlier request with this key.", body = Payment,
         headers(("Idempotent-Replayed" = String, description = "`true`: this is the response of an earlier request."))),
        (status = 402, description = "Declined for good.", body = String),
        IdempotencyAnswers,
    )
)]
async fn pay(
    mut tx: OnceTx,
    Json(order): Json<Order>,
) -> Result<(StatusCode, Json<Payment>), StatusCode> {
    let insert = "insert into payment (cents) values ($1) returning id";
    let id = sqlx::query_scalar(insert).bind(order.cents).fetch_one(&mut *tx).await;
    let id = id.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    if order.cents > 100_000 {
        return Err(StatusCode::PAYMENT_REQUIRED);
    }
    Ok((StatusCode::CREATED, Json(Payment { id, cents: order.cents })))
}

/// The interface, for pages of one other origin.
///
/// # Errors
/// An origin that is no header value.
pub fn router(once: PgOnce, pool: PgPool, page: &str) -> anyhow::Result<Router> {
    // Everybody is one user here. A real service reads the session.
    let idempotency =
        IdempotencyLayer::new(once, pool, |_: &Parts| Some(Scope::of(["shop", "payments"])));
    Ok(Router::new()
        .route("/payments", post(pay).layer(idempotency))
        .route("/openapi.json", get(|| async { Json(Description::openapi()) }))
        .layer(DefaultBodyLimit::max(64 * 1024))
        // Outermost, so that the layer's own answers (409, 422) have CORS headers, too.
        .layer(cors(page.parse()?)))
}

/// What a page needs: to send a key, and to read how to go on.
fn cors(page: HeaderValue) -> CorsLayer {
    CorsLayer::new()
        .allow_origin(page)
        .allow_methods([Method::POST])
        .allow_headers([header::CONTENT_TYPE, HeaderName::from_static("idempotency-key")])
        .expose_headers([header::RETRY_AFTER, HeaderName::from_static("idempotent-replayed")])
        .max_age(Duration::from_secs(3600))
}
