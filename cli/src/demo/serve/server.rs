//! The payment server, a process of its own: one handler, behind pgonce and behind a lock.

use std::net::Ipv4Addr;
use std::time::Duration;

use axum::extract::State;
use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use pgonce::sqlx::{self, PgConnection, PgPool, SqlStr};
use pgonce::web::{IdempotencyLayer, OnceTx};
use pgonce::{Policy, Scope};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::lock::{BoxError, Lock, Take};
use super::wire::listen;
use super::{SCOPE, Service};
use crate::demo::books;
use crate::exit::CliError;
use crate::output;
use crate::session::Global;

/// The payment server of `demo --serve`, which starts it
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Counts the servers of one demo
    #[arg(long)]
    number: u32,
    /// Where the locks are; by default in the database
    #[arg(long, env = "REDIS_URL", hide_env_values = true)]
    redis_url: Option<String>,
}

#[derive(Clone)]
struct Shop {
    pool: PgPool,
    charge: SqlStr,
    lock: Lock,
    number: u32,
}

#[derive(Deserialize)]
struct Payment {
    payment: i64,
    amount: i64,
}

#[derive(Serialize)]
struct Receipt {
    receipt: i64,
    amount: i64,
}

/// Before the charge a payment is checked, after it a receipt is printed. Long enough for a person to hit with a kill. In a
/// shorter time the same things happen, but more rarely.
const PAUSE: Duration = Duration::from_millis(150);
/// How long a double click waits for the answer of the first click.
const WAIT: Duration = Duration::from_secs(2);
const CHARGE: &str =
    "insert into :schema.charge (service, payment, amount) values ($1, $2, $3) returning id";

/// Prints its port, and serves until it is killed.
pub(crate) async fn run(global: &Global, args: &Args) -> Result<(), CliError> {
    end_with_parent();
    let schema = global.schema();
    let pool = books::pool(&global.database()?, schema, books::CONNECTIONS_MAX);
    let lock = match &args.redis_url {
        Some(url) => Lock::redis(url, schema).await?,
        None => Lock::row(pool.clone(), schema),
    };
    let scope = Scope::of(SCOPE);
    // Optional: the page sends no key while its switch is off. A real service would leave it required.
    let idempotency =
        IdempotencyLayer::new(global.once()?, pool.clone(), move |_| Some(scope.clone()))
            .optional()
            .policy(Policy::new().wait(WAIT)?)?;
    let charge = books::statement(schema, CHARGE);
    let shop = Shop { pool, charge, lock, number: args.number };
    let router = Router::new()
        .route(Service::Once.path(), post(once).layer(idempotency))
        .route(Service::Lock.path(), post(lock_expires))
        .route(Service::LockForever.path(), post(lock_stays))
        .with_state(shop);
    let failed = |error| CliError::failed("demo", error);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(failed)?;
    output::line(listener.local_addr().map_err(failed)?.port())?;
    match listen(listener, router).await {}
}

/// The demo holds the other end of the standard input. When the demo ends, however it ends, so does this process.
fn end_with_parent() {
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(0);
    });
}

/// With pgonce: the layer commits the charge together with the key and the response.
async fn once(
    State(shop): State<Shop>,
    mut tx: OnceTx,
    Json(payment): Json<Payment>,
) -> Result<Response, Failed> {
    let receipt = shop.charge(&mut tx, Service::Once, &payment).await?;
    Ok((StatusCode::CREATED, Json(receipt)).into_response())
}

async fn lock_expires(
    State(shop): State<Shop>,
    headers: HeaderMap,
    Json(payment): Json<Payment>,
) -> Result<Response, Failed> {
    shop.charge_locked(&headers, &payment, true).await
}

async fn lock_stays(
    State(shop): State<Shop>,
    headers: HeaderMap,
    Json(payment): Json<Payment>,
) -> Result<Response, Failed> {
    shop.charge_locked(&headers, &payment, false).await
}

impl Shop {
    /// What a payment does, whatever protects it.
    async fn charge(
        &self,
        conn: &mut PgConnection,
        service: Service,
        payment: &Payment,
    ) -> sqlx::Result<Receipt> {
        tokio::time::sleep(PAUSE).await;
        let receipt = sqlx::query_scalar(self.charge.clone())
            .bind(service.name())
            .bind(payment.payment)
            .bind(payment.amount)
            .fetch_one(conn)
            .await?;
        tokio::time::sleep(PAUSE).await;
        Ok(Receipt { receipt, amount: payment.amount })
    }

    /// With a lock: first the lock, then the charge, last the answer. Three commits in two or three places, and a process
    /// can die between any two. The charge is a transaction of its own, as in a service whose lock is a middleware.
    async fn charge_locked(
        &self,
        headers: &HeaderMap,
        payment: &Payment,
        expires: bool,
    ) -> Result<Response, Failed> {
        let mut conn = self.pool.acquire().await?;
        let key = headers.get("idempotency-key").and_then(|key| key.to_str().ok());
        let Some(key) = key else {
            let receipt = self.charge(&mut conn, Service::Lock, payment).await?;
            return Ok((StatusCode::CREATED, Json(receipt)).into_response());
        };
        match self.lock.take(key, self.number, expires).await? {
            Take::InProgress => {
                let problem = json!({ "title": "A request with this key is in progress" });
                let status = StatusCode::CONFLICT;
                Ok((status, [(RETRY_AFTER, "1")], Json(problem)).into_response())
            }
            Take::Done(answer) => Ok(created(answer)),
            Take::Taken => {
                let receipt = self.charge(&mut conn, Service::Lock, payment).await?;
                let answer = json!(receipt);
                self.lock.keep(key, answer.clone()).await?;
                Ok(created(answer))
            }
        }
    }
}

fn created(answer: Value) -> Response {
    (StatusCode::CREATED, Json(answer)).into_response()
}

/// The database or Redis is away.
struct Failed(BoxError);

impl<E: Into<BoxError>> From<E> for Failed {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        tracing::warn!(error = %self.0, "a payment failed");
        StatusCode::SERVICE_UNAVAILABLE.into_response()
    }
}
