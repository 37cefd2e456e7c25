//! The routes, and who may call them.

use std::time::Duration;

use axum::extract::{MatchedPath, Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::get;
use axum::{Json, Router};
use pgonce::web::IdempotencyLayer;
use pgonce::{Lease, Scope};
use serde_json::json;
use sqlx::PgPool;

use crate::error::ApiError;
use crate::provider::{CallsPerKey, CardProvider};
use crate::{charges, payments};

#[derive(Clone)]
pub struct App {
    pub pool: PgPool,
    pub provider: CardProvider,
}

/// How long a charge stays blocked after its process dies. While the process lives, the layer renews the lease after
/// every third of it. So the lease need not outlast the slowest charge, only a short stall of the process or database.
/// 3 s is good for trying this out; in production, begin with 30 s.
const LEASE: Duration = Duration::from_secs(3);

pub fn router(app: App, idempotency: &IdempotencyLayer) -> pgonce::Result<Router> {
    let leased = idempotency.clone().leased(Lease::new(LEASE)?)?;
    let tenants = Router::new()
        .route("/payments", get(payments::list).post(payments::create).layer(idempotency.clone()))
        .route("/payments/{id}", get(payments::show))
        .route("/charges", get(charges::list).post(charges::create).layer(leased.clone()))
        .route("/charges/{id}", get(charges::show))
        // Added last, so it is outermost: the idempotency layers need the caller's identity, and a stranger must not
        // get a stored response. Add rate limits and time-outs here too.
        .route_layer(middleware::from_fn(authenticate));

    // Clients must be able to learn which keys are accepted and how long they are remembered.
    let policy = json!({
        "POST /payments": idempotency.specification(),
        "POST /charges": leased.specification(),
    });
    let router = Router::new()
        .merge(tenants)
        .route("/provider", get(provider_calls))
        .route("/idempotency", get(async || Json(policy)))
        .route("/healthz", get(async || "ok"))
        .with_state(app);
    Ok(router)
}

/// The caller and the operation. A key has a meaning only in this scope: the same key from another tenant or for the
/// other route is another operation. Uses the matched route, because a client can write the path of a request in
/// several ways.
pub fn scope(request: &Parts) -> Option<Scope> {
    let Tenant(name) = request.extensions.get()?;
    let route = request.extensions.get::<MatchedPath>()?.as_str().trim_start_matches('/');
    Some(Scope::of([name, route])) // acme/payments
}

/// The caller, as `authenticate` found it.
#[derive(Debug, Clone)]
pub struct Tenant(pub String);

impl Tenant {
    /// A real service would look up the token. Here the token is the tenant's name.
    fn of(token: &str) -> Option<Self> {
        let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let named = (1..=64).contains(&token.len()) && token.chars().all(fits);
        named.then(|| Self(token.to_owned()))
    }
}

/// Takes the tenant from `Authorization: Bearer TENANT`.
async fn authenticate(mut request: Request, next: Next) -> Result<Response, ApiError> {
    let header = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let tenant = header
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .and_then(|(_, token)| Tenant::of(token))
        .ok_or(ApiError::Unauthorized)?;
    request.extensions_mut().insert(tenant);
    Ok(next.run(request).await)
}

/// `GET /provider`: what the card provider has seen, for all tenants. For you, not for clients.
async fn provider_calls(State(app): State<App>) -> Result<Json<Vec<CallsPerKey>>, ApiError> {
    Ok(Json(app.provider.calls().await?))
}
