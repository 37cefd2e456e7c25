//! A service that charges, behind pgonce's layer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use axum::body::Bytes;
use axum::http::StatusCode;
use axum::middleware::map_response;
use axum::response::Response;
use axum::routing::post;
use axum::{Form, Json, Router};
use pgonce::web::{IdempotencyLayer, OnceTx};
use pgonce::{PgOnce, Scope};
use pgonce_testing::Throwaway;
use sqlx::{AssertSqlSafe, PgPool};
use tokio::net::TcpListener;

#[derive(Debug)]
pub struct Service {
    pub address: String,
    pub pool: PgPool,
    /// Answers *in progress* so far.
    pub conflicts: Arc<AtomicU32>,
}

/// An order's number is the body.
async fn charge(mut tx: OnceTx, order: Bytes) -> Result<(StatusCode, String), StatusCode> {
    let order = String::from_utf8(order.to_vec()).map_err(|_| StatusCode::BAD_REQUEST)?;
    let insert = sqlx::query_scalar("insert into charge (order_id) values ($1) returning id");
    let id: i64 =
        insert.bind(&order).fetch_one(&mut *tx).await.map_err(|_| StatusCode::BAD_GATEWAY)?;
    Ok((StatusCode::CREATED, format!("charge {id}")))
}

/// A charge as stripe-node sends it: a form.
async fn stripes(
    tx: OnceTx,
    Form(fields): Form<Vec<(String, String)>>,
) -> Result<Json<serde_json::Value>, StatusCode> {
    let description = fields.into_iter().find(|(name, _)| name == "description");
    let (_, order) = description.ok_or(StatusCode::BAD_REQUEST)?;
    let (_, id) = charge(tx, order.clone().into()).await?;
    Ok(Json(serde_json::json!({ "id": id, "object": "charge", "description": order })))
}

impl Service {
    pub async fn start() -> Self {
        let server = Throwaway::shared().await.expect("a PostgreSQL to test on");
        let pool = PgPool::connect_with(server.new_database().await.unwrap()).await.unwrap();
        let once = PgOnce::new();
        once.migrate(&mut pool.acquire().await.unwrap()).await.unwrap();
        let table =
            "create table charge (id bigint generated always as identity, order_id text not null)";
        sqlx::query(table).execute(&pool).await.unwrap();
        let idempotency = IdempotencyLayer::new(once, pool.clone(), |_| Some(Scope::of(["shop"])));
        let conflicts = Arc::<AtomicU32>::default();
        let count = conflicts.clone();
        let router = Router::new()
            .route("/charges", post(charge).layer(idempotency.clone()))
            .route("/v1/charges", post(stripes).layer(idempotency))
            .layer(map_response(move |response: Response| {
                let conflict = response.status() == StatusCode::CONFLICT;
                count.fetch_add(u32::from(conflict), Ordering::Relaxed);
                async { response }
            }));
        Self { address: serve(router).await, pool, conflicts }
    }

    pub async fn number(&self, sql: &str) -> i64 {
        sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&self.pool).await.unwrap()
    }

    /// Orders that were not charged exactly once, of this many.
    pub async fn wrong(&self, orders: i64) -> i64 {
        let sql = format!(
            "select count(*) from generate_series(1, {orders}) o
              where 1 <> (select count(*) from charge where order_id = 'order-' || o)"
        );
        self.number(&sql).await
    }
}

pub async fn serve(router: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}
