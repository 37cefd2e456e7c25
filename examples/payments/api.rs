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

/// How long a charge stays blocked when the process that works on it dies. While that process lives,
/// the layer renews the lease every third of it, so it need not be as long as the slowest charge: only
/// longer than a hiccup of the process or the database. 3 s suits trying it out; 30 s is a better start
/// in production.
const LEASE: Duration = Duration::from_secs(3);

pub fn router(app: App, idempotency: &IdempotencyLayer) -> pgonce::Result<Router> {
    let leased = idempotency.clone().leased(Lease::new(LEASE)?)?;
    let tenants = Router::new()
        .route("/payments", get(payments::list).post(payments::create).layer(idempotency.clone()))
        .route("/payments/{id}", get(payments::show))
        .route("/charges", get(charges::list).post(charges::create).layer(leased.clone()))
        .route("/charges/{id}", get(charges::show))
        // Added last, so outermost. The idempotency layers ask whose request it is, and no stranger
        // must get a stored response. Rate limits and time-outs belong here too.
        .route_layer(middleware::from_fn(authenticate));

    // Clients must be able to learn which keys are taken, and for how long they are remembered.
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

/// Whose request it is and what it does. A key means something only within this: the same key of
/// another tenant, or for the other route, is another operation. The route is the one that matched: a
/// client could write the path of a request in several ways.
pub fn scope(request: &Parts) -> Option<Scope> {
    let Tenant(name) = request.extensions.get()?;
    let route = request.extensions.get::<MatchedPath>()?.as_str().trim_start_matches('/');
    Some(Scope::of([name, route])) // acme/payments
}

/// Who sent a request, once `authenticate` has seen to it.
#[derive(Debug, Clone)]
pub struct Tenant(pub String);

impl Tenant {
    /// A real service would look the token up. Here it is the tenant's name.
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

/// `GET /provider`: what the card provider has seen, of all tenants. For you, not for them.
async fn provider_calls(State(app): State<App>) -> Result<Json<Vec<CallsPerKey>>, ApiError> {
    Ok(Json(app.provider.calls().await?))
}
