//! The work of every contender: a payment is inserted, and its JSON is the answer.

use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

/// In `payment` nothing keeps a key from being paid twice, in `payment_unique` a constraint does.
pub(crate) const TABLES: &str = "
create table payment (
  id bigint generated always as identity primary key,
  key text not null, customer text not null, amount bigint not null,
  currency text not null, description text not null);
create table payment_unique (like payment including all, unique (key));
create table saved_response (
  scope text not null, key text not null, created_at timestamptz not null default now(),
  code smallint, body bytea, primary key (scope, key))";

/// What is paid, for every key the same.
pub(crate) const ORDER: Order<'_> = Order {
    customer: "customer-0123456789",
    amount: 4999,
    currency: "EUR",
    description: "Two tickets for the evening performance, row 7, seats 11 and 12, paid in advance \
                  and sent by mail",
};

#[derive(Debug, Serialize)]
pub(crate) struct Order<'a> {
    pub(crate) customer: &'a str,
    pub(crate) amount: i64,
    pub(crate) currency: &'a str,
    pub(crate) description: &'a str,
}

/// Some 460 bytes of JSON. All of it follows from the row.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Payment {
    pub(crate) id: i64,
    pub(crate) key: String,
    customer: String,
    amount: i64,
    currency: String,
    description: String,
    receipt_url: String,
    refund_url: String,
}

impl Payment {
    pub(crate) fn new(id: i64, key: &str, order: &Order<'_>) -> Self {
        Self {
            id,
            key: key.to_owned(),
            customer: order.customer.to_owned(),
            amount: order.amount,
            currency: order.currency.to_owned(),
            description: order.description.to_owned(),
            receipt_url: format!("https://payments.example.com/v1/payments/{id}/receipt?key={key}"),
            refund_url: format!("https://payments.example.com/v1/payments/{id}/refunds"),
        }
    }

    pub(crate) fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string(self)
    }
}

/// Pays, in the caller's transaction.
pub(crate) async fn pay(conn: &mut PgConnection, key: &str) -> sqlx::Result<Payment> {
    let sql = "insert into payment (key, customer, amount, currency, description)
        values ($1, $2, $3, $4, $5) returning id";
    insert(conn, sql, key).await
}

/// The same in the table with the constraint.
pub(crate) async fn pay_unique(conn: &mut PgConnection, key: &str) -> sqlx::Result<Payment> {
    let sql = "insert into payment_unique (key, customer, amount, currency, description)
        values ($1, $2, $3, $4, $5) returning id";
    insert(conn, sql, key).await
}

async fn insert(conn: &mut PgConnection, sql: &'static str, key: &str) -> sqlx::Result<Payment> {
    let insert = sqlx::query_scalar(sql).bind(key).bind(ORDER.customer).bind(ORDER.amount);
    let id = insert.bind(ORDER.currency).bind(ORDER.description).fetch_one(conn).await?;
    Ok(Payment::new(id, key, &ORDER))
}
