//! Idempotency for HTTP: a tower layer that commits a handler's writes, its key and its response in one
//! transaction, before the first byte of the response is sent.
//!
//! The page [HTTP](crate::_docs::http) tells it all: modes, statuses, answers, order of layers.
//!
//! ```no_run
//! # #[cfg(feature = "axum")]
//! # mod example {
//! use axum::{Json, Router, http::{StatusCode, request::Parts}, routing::post};
//! use pgonce::{PgOnce, Scope, web::{IdempotencyLayer, OnceTx}};
//! # #[derive(Clone)] struct Tenant(String);
//! # #[derive(serde::Deserialize)] struct Payment { amount: i64 }
//!
//! fn router(pool: sqlx::PgPool) -> Router {
//!     let idempotency = IdempotencyLayer::new(PgOnce::new(), pool, |request: &Parts| {
//!         let Tenant(name) = request.extensions.get()?;
//!         Some(Scope::of([name, "payments.create"]))
//!     });
//!     Router::new().route("/payments", post(create_payment).layer(idempotency))
//! }
//!
//! async fn create_payment(mut tx: OnceTx, Json(payment): Json<Payment>) -> Result<StatusCode, StatusCode> {
//!     sqlx::query("insert into payment (amount) values ($1)")
//!         .bind(payment.amount)
//!         .execute(&mut *tx)
//!         .await
//!         .map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
//!     Ok(StatusCode::CREATED)
//! }
//! # }
//! ```

mod accepted;
mod answer;
mod body;
#[cfg(feature = "axum")]
mod extract;
mod fingerprint;
mod grpc;
mod handle;
mod handler_test;
mod key;
mod layer;
mod leased;
mod perform;
mod presets;
mod replay;
mod rollout;
mod route;
#[cfg(feature = "axum")]
mod run_error;
mod service;
mod settle;
mod transactional;
mod unkeyed;

pub use accepted::accepted;
pub use answer::Answer;
pub use body::Buffered;
#[cfg(feature = "axum")]
pub use extract::IdempotencyKey;
pub use fingerprint::RequestFingerprint;
pub use grpc::{Grpc, GrpcLayer};
pub use handle::{OnceClaim, OnceRejection, OnceTx};
pub use handler_test::HandlerTest;
pub use layer::IdempotencyLayer;
pub use service::Idempotency;
pub use settle::{Secret, Settle};
