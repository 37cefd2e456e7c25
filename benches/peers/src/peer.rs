//! The contenders. Each pays for a key and gives the payment's JSON, and should pay once.

use std::time::Duration;

use anyhow::Result;
use pgonce::{Fingerprint, Operation, RunError};
use sqlx::{PgConnection, PgPool};

use crate::lock;
use crate::payment::{ORDER, Order, Payment, pay, pay_unique};
use crate::servers::{Persistence, Services};

const SCOPE: &str = "acme/payments.create";
/// How long `run` waits for another one at work on the key.
const WAIT_MAX: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    Bare,
    Pgonce,
    ClaimRow,
    UniqueKey,
    Lock(Persistence),
    PollingLock,
}

impl Peer {
    /// The bare transaction first: the others are compared with it.
    pub(crate) const ALL: [Self; 8] = [
        Self::Bare,
        Self::Pgonce,
        Self::ClaimRow,
        Self::UniqueKey,
        Self::Lock(Persistence::None),
        Self::PollingLock,
        Self::Lock(Persistence::EverySecond),
        Self::Lock(Persistence::Always),
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare transaction, unprotected",
            Self::Pgonce => "`PgOnce::run`",
            Self::ClaimRow => "claim row in the transaction (zero to production)",
            Self::UniqueKey => "bare unique constraint",
            Self::Lock(Persistence::None) => "Redis lock, no persistence",
            Self::PollingLock => "Redis lock, no persistence, waiting by polling",
            Self::Lock(Persistence::EverySecond) => "Redis lock, `appendfsync everysec`",
            Self::Lock(Persistence::Always) => "Redis lock, `appendfsync always`",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|peer| peer.name() == name)
    }

    /// Whether it says of itself that it never pays twice, and has no part that could forget.
    pub(crate) fn must_not_double(self) -> bool {
        matches!(self, Self::Pgonce | Self::ClaimRow)
    }

    /// Where its payments are.
    pub(crate) fn table(self) -> &'static str {
        match self {
            Self::UniqueKey => "payment_unique",
            _ => "payment",
        }
    }

    /// Pays for the key, or finds what was paid. `None`: somebody else is at it, which would be a 409.
    pub(crate) async fn perform(self, services: &Services, key: &str) -> Result<Option<String>> {
        match self {
            Self::Bare => bare(&services.pool, key).await.map(Some),
            Self::Pgonce => pgonce(services, key).await,
            Self::ClaimRow => claim_row(&services.pool, key).await.map(Some),
            Self::UniqueKey => unique_key(&services.pool, key).await.map(Some),
            Self::Lock(persistence) => lock::perform(services, persistence, key).await,
            Self::PollingLock => lock::poll(services, Persistence::None, key).await,
        }
    }
}

pub(crate) async fn bare(pool: &PgPool, key: &str) -> Result<String> {
    let mut tx = pool.begin().await?;
    let payment = pay(&mut tx, key).await?;
    tx.commit().await?;
    Ok(payment.json()?)
}

async fn pgonce(services: &Services, key: &str) -> Result<Option<String>> {
    let op = Operation::new(SCOPE, key)?.fingerprint(Fingerprint::of_json(&ORDER)?).wait(WAIT_MAX);
    let work = async |tx: &mut PgConnection| pay(tx, key).await;
    match services.once.run(&services.pool, &op, work).await {
        Ok(payment) => Ok(Some(payment.json()?)),
        Err(RunError::InProgress(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Claim, work and response in one transaction. Who comes second waits in the insert, and then reads.
async fn claim_row(pool: &PgPool, key: &str) -> Result<String> {
    let mut tx = pool.begin().await?;
    let claim = "insert into saved_response (scope, key) values ($1, $2) on conflict do nothing";
    let claimed = sqlx::query(claim).bind(SCOPE).bind(key).execute(&mut *tx).await?;
    if claimed.rows_affected() == 0 {
        let read = "select body from saved_response where scope = $1 and key = $2";
        let read = sqlx::query_scalar(read).bind(SCOPE).bind(key);
        let body: Vec<u8> = read.fetch_one(&mut *tx).await?;
        tx.rollback().await?; // nothing was written
        return Ok(String::from_utf8(body)?);
    }
    let answer = pay(&mut tx, key).await?.json()?;
    let save = "update saved_response set code = 200, body = $3 where scope = $1 and key = $2";
    let save = sqlx::query(save).bind(SCOPE).bind(key).bind(answer.as_bytes());
    save.execute(&mut *tx).await?;
    tx.commit().await?;
    Ok(answer)
}

/// The payment itself has the key. Its answer is made from the row again.
async fn unique_key(pool: &PgPool, key: &str) -> Result<String> {
    let mut tx = pool.begin().await?;
    match pay_unique(&mut tx, key).await {
        Ok(payment) => {
            tx.commit().await?;
            Ok(payment.json()?)
        }
        Err(sqlx::Error::Database(error)) if error.is_unique_violation() => {
            tx.rollback().await?;
            let sql = "select id, customer, amount, currency, description
                from payment_unique where key = $1";
            let row = sqlx::query_as::<_, (i64, String, i64, String, String)>(sql).bind(key);
            let (id, customer, amount, currency, description) = row.fetch_one(pool).await?;
            let order = Order {
                customer: &customer,
                amount,
                currency: &currency,
                description: &description,
            };
            Ok(Payment::new(id, key, &order).json()?)
        }
        Err(error) => Err(error.into()),
    }
}
