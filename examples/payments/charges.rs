//! Charges: they call another service, so their route is leased.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::http::header::LOCATION;
use axum::response::IntoResponse;
use axum::{Extension, Json};
use pgonce::web::OnceClaim;
use serde::Serialize;

use crate::api::{App, Tenant};
use crate::error::ApiError;
use crate::order::Order;

#[derive(Serialize)]
pub struct Charge {
    charge_id: i64,
    /// The provider's number for the charge.
    receipt: i64,
    account: String,
    amount: i64,
    currency: String,
}

/// `POST /charges`. Before this runs, the layer has committed a claim on the key. The handler continues if the client
/// hangs up. If the process dies, the claim lapses, and a retry runs the handler again.
pub async fn create(
    State(app): State<App>,
    claim: OnceClaim,
    Extension(tenant): Extension<Tenant>,
    order: Order,
) -> Result<impl IntoResponse, ApiError> {
    // No transaction covers the provider, so this call may happen more than once. It always has the same key, derived
    // from the client's key, so the provider charges the card once. From here on, the client's key stays bound to this
    // order, whatever happens.
    let key = claim.derived_key("charge");
    let receipt = app.provider.charge(&key, &order).await?;

    // The rest is in this database. The layer commits this transaction with the key and the response, unless another
    // request has taken over the claim.
    let mut tx = claim.begin().await?;
    let sql = "insert into payments_example.charge (receipt, tenant, account, amount, currency)
               values ($1, $2, $3, $4, $5) returning charge_id";
    let charge_id: i64 = sqlx::query_scalar(sql)
        .bind(receipt)
        .bind(&tenant.0)
        .bind(&order.account)
        .bind(order.amount)
        .bind(&order.currency)
        .fetch_one(&mut *tx)
        .await?;

    let Order { account, amount, currency } = order;
    let charge = Charge { charge_id, receipt, account, amount, currency };
    Ok((StatusCode::CREATED, [(LOCATION, format!("/charges/{charge_id}"))], Json(charge)))
}

type Row = (i64, i64, String, i64, String);

impl From<Row> for Charge {
    fn from((charge_id, receipt, account, amount, currency): Row) -> Self {
        Self { charge_id, receipt, account, amount, currency }
    }
}

/// `GET /charges`: the tenant's charges.
pub async fn list(
    State(app): State<App>,
    Extension(tenant): Extension<Tenant>,
) -> Result<Json<Vec<Charge>>, ApiError> {
    let sql = "select charge_id, receipt, account, amount, currency from payments_example.charge
                where tenant = $1 order by charge_id";
    let rows: Vec<Row> = sqlx::query_as(sql).bind(tenant.0).fetch_all(&app.pool).await?;
    Ok(Json(rows.into_iter().map(Charge::from).collect()))
}

/// `GET /charges/{id}`, where `Location` points.
pub async fn show(
    State(app): State<App>,
    Extension(tenant): Extension<Tenant>,
    Path(id): Path<i64>,
) -> Result<Json<Charge>, ApiError> {
    let sql = "select charge_id, receipt, account, amount, currency from payments_example.charge
                where tenant = $1 and charge_id = $2";
    let row: Option<Row> =
        sqlx::query_as(sql).bind(tenant.0).bind(id).fetch_optional(&app.pool).await?;
    row.map(|row| Json(row.into())).ok_or(ApiError::NotFound)
}
