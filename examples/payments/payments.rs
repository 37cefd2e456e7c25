//! Payments: all in this database, so their route is transactional.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::http::header::LOCATION;
use axum::response::IntoResponse;
use axum::{Extension, Json};
use pgonce::web::OnceTx;
use serde::Serialize;
use sqlx::PgConnection;

use crate::api::{App, Tenant};
use crate::error::ApiError;
use crate::order::Order;

#[derive(Serialize)]
pub struct Payment {
    payment_id: i64,
    account: String,
    amount: i64,
    currency: String,
}

/// `POST /payments`. The layer has begun the key in `tx`. When this returns, the layer stores the response there,
/// commits, and only then sends the response. An error rolls back the writes.
pub async fn create(
    mut tx: OnceTx,
    Extension(tenant): Extension<Tenant>,
    order: Order,
) -> Result<impl IntoResponse, ApiError> {
    let payment = pay(&mut tx, &tenant, order).await?;
    let location = format!("/payments/{}", payment.payment_id);
    Ok((StatusCode::CREATED, [(LOCATION, location)], Json(payment)))
}

/// The business logic: knows no keys, only a transaction.
async fn pay(tx: &mut PgConnection, tenant: &Tenant, order: Order) -> Result<Payment, ApiError> {
    let sql = "insert into payments_example.payment (tenant, account, amount, currency)
               values ($1, $2, $3, $4) returning payment_id";
    let payment_id = sqlx::query_scalar(sql)
        .bind(&tenant.0)
        .bind(&order.account)
        .bind(order.amount)
        .bind(&order.currency)
        .fetch_one(tx)
        .await?;
    // Two amounts simulate errors. Both roll back the insert above.
    match order.amount {
        402 => Err(ApiError::Declined("The account has no funds.")),
        500 => Err(ApiError::Broken("a disk is on fire".to_owned())),
        _ => {
            let Order { account, amount, currency } = order;
            Ok(Payment { payment_id, account, amount, currency })
        }
    }
}

type Row = (i64, String, i64, String);

impl From<Row> for Payment {
    fn from((payment_id, account, amount, currency): Row) -> Self {
        Self { payment_id, account, amount, currency }
    }
}

/// `GET /payments`: the tenant's payments. Like every `GET`, needs no key.
pub async fn list(
    State(app): State<App>,
    Extension(tenant): Extension<Tenant>,
) -> Result<Json<Vec<Payment>>, ApiError> {
    let sql = "select payment_id, account, amount, currency from payments_example.payment
                where tenant = $1 order by payment_id";
    let rows: Vec<Row> = sqlx::query_as(sql).bind(tenant.0).fetch_all(&app.pool).await?;
    Ok(Json(rows.into_iter().map(Payment::from).collect()))
}

/// `GET /payments/{id}`, where `Location` points.
pub async fn show(
    State(app): State<App>,
    Extension(tenant): Extension<Tenant>,
    Path(id): Path<i64>,
) -> Result<Json<Payment>, ApiError> {
    let sql = "select payment_id, account, amount, currency from payments_example.payment
                where tenant = $1 and payment_id = $2";
    let row: Option<Row> =
        sqlx::query_as(sql).bind(tenant.0).bind(id).fetch_optional(&app.pool).await?;
    row.map(|row| Json(row.into())).ok_or(ApiError::NotFound)
}
