//! A card provider, as third parties run them: remote, slow, and honoring idempotency keys.
//!
//! A fake. It has its own tables and connections and commits separately. So it remembers what it did even if its caller
//! dies right afterwards, as a real provider would.

use std::time::Duration;

use pgonce::Key;
use serde::Serialize;
use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

use crate::error::ApiError;
use crate::order::Order;

#[derive(Clone)]
pub struct CardProvider {
    pool: PgPool,
}

/// Why the provider did not charge a card.
#[derive(Debug)]
pub enum Refused {
    /// The card is declined, and stays declined.
    Declined,
    /// The provider is unreachable, or seems so. It may have charged the card.
    Away(String),
}

/// How often the provider got a key, and how often it charged a card for the key.
#[derive(Serialize)]
pub struct CallsPerKey {
    key: String,
    calls: i64,
    charges: i64,
}

/// How long the provider takes to answer.
const LATENCY: Duration = Duration::from_millis(50);

impl CardProvider {
    pub async fn connect(options: PgConnectOptions) -> sqlx::Result<Self> {
        let pool = PgPoolOptions::new().connect_with(options).await?;
        let tables = "
            select pg_advisory_xact_lock(hashtextextended('card_provider_example', 0));
            create schema if not exists card_provider_example;
            create table if not exists card_provider_example.call (
              id bigint generated always as identity primary key, key text not null
            );
            create table if not exists card_provider_example.charge (
              receipt bigint generated always as identity primary key, key text not null unique,
              account text not null, amount bigint not null, currency text not null
            );";
        sqlx::raw_sql(tables).execute(&pool).await?;
        Ok(Self { pool })
    }

    /// Charges a card and returns a receipt. A known key gets the same receipt again.
    pub async fn charge(&self, key: &Key, order: &Order) -> Result<i64, Refused> {
        let call = "insert into card_provider_example.call (key) values ($1)";
        sqlx::query(call).bind(key.as_str()).execute(&self.pool).await?;
        tokio::time::sleep(LATENCY).await;
        match order.amount {
            402 => return Err(Refused::Declined),
            500 => return Err(Refused::Away("the provider does not answer".to_owned())),
            _ => {}
        }
        let charge = "insert into card_provider_example.charge (key, account, amount, currency)
                      values ($1, $2, $3, $4) on conflict (key) do nothing";
        sqlx::query(charge)
            .bind(key.as_str())
            .bind(&order.account)
            .bind(order.amount)
            .bind(&order.currency)
            .execute(&self.pool)
            .await?;
        let receipt = "select receipt from card_provider_example.charge where key = $1";
        Ok(sqlx::query_scalar(receipt).bind(key.as_str()).fetch_one(&self.pool).await?)
    }

    /// The provider's books, for you to look at. A real provider has a dashboard.
    pub async fn calls(&self) -> sqlx::Result<Vec<CallsPerKey>> {
        let sql = "select key, count(*), count(distinct receipt)
                     from card_provider_example.call left join card_provider_example.charge using (key)
                    group by key order by min(id)";
        let rows: Vec<(String, i64, i64)> = sqlx::query_as(sql).fetch_all(&self.pool).await?;
        Ok(rows
            .into_iter()
            .map(|(key, calls, charges)| CallsPerKey { key, calls, charges })
            .collect())
    }

    pub async fn close(&self) {
        self.pool.close().await;
    }
}

impl From<sqlx::Error> for Refused {
    fn from(error: sqlx::Error) -> Self {
        Self::Away(error.to_string())
    }
}

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Declined => Self::Declined("The card was declined."),
            // It may have charged the card. A retry sends the same order with the same key, and so gets the receipt.
            Refused::Away(cause) => Self::ProviderAway(cause),
        }
    }
}
