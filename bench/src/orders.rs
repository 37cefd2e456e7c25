//! The workload: takes an order and returns it, with different protections.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use pgonce::sqlx::{self, PgConnection, PgPool, SqlStr};
use pgonce::{Begin, Fingerprint, Lease, Operation, PgOnce, Policy, Response, Work as LeasedWork};
use sha2::{Digest, Sha256};

use crate::arena::Stage;
use crate::load::Fault;

const RESPONSE_BYTES: usize = 460;
/// With its key, the note makes an order's row 200 bytes long.
const NOTE_BYTES: usize = 120;
const KEY_BYTES: usize = 34;
pub(crate) const SCOPE: &str = "pay";

/// How an order is protected from being taken twice.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Not at all: one transaction with one insert.
    Bare,
    /// Claim, work and result in one transaction, as one writes it with sqlx.
    HandWritten,
    Run,
    /// `run` that assumes every key is new.
    Optimistic,
    /// `begin` and `complete` in the caller's transaction.
    Verbs,
    Leased,
}

/// A shop that takes orders with one protection.
#[derive(Clone)]
pub(crate) struct Shop {
    way: Way,
    pool: PgPool,
    once: PgOnce,
    /// How long `run` waits for another caller.
    wait: Duration,
    sql: Arc<Statements>,
}

struct Statements {
    order: SqlStr,
    claim: SqlStr,
    finish: SqlStr,
    look: SqlStr,
}

impl Way {
    /// A scope per protection, so that none sees the keys of another.
    fn scope(self) -> &'static str {
        match self {
            Self::Leased => "ship",
            Self::Optimistic => "optimistic",
            Self::Verbs => "buy",
            _ => SCOPE,
        }
    }

    fn orders(self) -> &'static str {
        match self {
            Self::Bare => "orders_bare",
            Self::HandWritten => "orders_hand_written",
            Self::Run => "orders_run",
            Self::Optimistic => "orders_run_optimistic",
            Self::Verbs => "orders_verbs",
            Self::Leased => "orders_leased",
        }
    }

    pub(crate) async fn orders_taken(self, stage: &Stage) -> anyhow::Result<HashSet<String>> {
        let orders = self.orders();
        let keys = format!("select left(note, {KEY_BYTES}) from :schema.{orders}");
        let keys = sqlx::query_scalar(stage.sql(&keys)).fetch_all(&mut stage.conn().await?).await?;
        Ok(keys.into_iter().collect())
    }

    /// How many orders were taken for a key that already had one.
    pub(crate) async fn doubles(self, stage: &Stage) -> anyhow::Result<u64> {
        let orders = self.orders();
        let count = format!(
            "select count(*) - count(distinct left(note, {KEY_BYTES})) from :schema.{orders}"
        );
        Ok(stage.ask::<i64>(&count).await?.unsigned_abs())
    }
}

impl Shop {
    pub(crate) fn new(stage: &Stage, way: Way, pool: PgPool) -> Self {
        let sql = |text: &str| stage.sql(&text.replace(":orders", way.orders()));
        let sql = Statements {
            order: sql(
                "insert into :schema.:orders (customer_id, amount_cents, currency, status, note)
                 values ($1, $2, $3, $4, $5)",
            ),
            claim: sql("insert into :schema.keys_hand_written (scope, key, fingerprint, status, expires_at)
                 values ($1, $2, $3, 1, now() + interval '1 day')
                 on conflict do nothing returning attempt"),
            finish: sql(
                "update :schema.keys_hand_written set status = 2, response = $3 where scope = $1 and key = $2",
            ),
            look: sql("select response from :schema.keys_hand_written where scope = $1 and key = $2"),
        };
        let once = stage.once.clone();
        Self { way, pool, once, wait: Duration::ZERO, sql: Arc::new(sql) }
    }

    /// Makes `run` wait for another caller with the same key.
    pub(crate) fn waiting(self, wait: Duration) -> Self {
        Self { wait, ..self }
    }

    pub(crate) async fn order(&self, key: &str) -> Result<String, Fault> {
        match self.way {
            Way::Bare => self.bare(key).await,
            Way::HandWritten => self.hand_written(key).await,
            Way::Run | Way::Optimistic => self.run(key).await,
            Way::Verbs => self.verbs(key).await,
            Way::Leased => self.leased(key).await,
        }
    }

    async fn insert(&self, conn: &mut PgConnection, key: &str) -> Result<String, sqlx::Error> {
        sqlx::query(self.sql.order.clone())
            .bind(7_i64)
            .bind(1200_i64)
            .bind("EUR")
            .bind("paid")
            .bind(format!("{key:x<NOTE_BYTES$}"))
            .execute(conn)
            .await?;
        Ok("y".repeat(RESPONSE_BYTES - 2))
    }

    async fn bare(&self, key: &str) -> Result<String, Fault> {
        let mut tx = self.pool.begin().await?;
        let value = self.insert(&mut tx, key).await?;
        tx.commit().await?;
        Ok(value)
    }

    async fn hand_written(&self, key: &str) -> Result<String, Fault> {
        let mut tx = self.pool.begin().await?;
        let claim = sqlx::query(self.sql.claim.clone()).bind(SCOPE).bind(key).bind(&[0_u8; 32][..]);
        let value = if claim.fetch_optional(&mut *tx).await?.is_some() {
            let value = self.insert(&mut tx, key).await?;
            let response = serde_json::to_vec(&value)?;
            let finish = sqlx::query(self.sql.finish.clone()).bind(SCOPE).bind(key).bind(response);
            finish.execute(&mut *tx).await?;
            value
        } else {
            let look = sqlx::query_scalar::<_, Vec<u8>>(self.sql.look.clone());
            let response = look.bind(SCOPE).bind(key).fetch_one(&mut *tx).await?;
            serde_json::from_slice(&response)?
        };
        tx.commit().await?;
        Ok(value)
    }

    fn operation(&self, key: &str) -> Result<Operation, Fault> {
        let policy = Policy::new().wait(self.wait)?;
        let op = Operation::new(self.way.scope(), key)?.fingerprint(fingerprint()).policy(policy);
        Ok(if self.way == Way::Optimistic { op.optimistic() } else { op })
    }

    async fn run(&self, key: &str) -> Result<String, Fault> {
        let op = self.operation(key)?;
        let work = async |tx: &mut PgConnection| self.insert(tx, key).await;
        Ok(self.once.run(&self.pool, &op, work).await?.into_inner())
    }

    async fn verbs(&self, key: &str) -> Result<String, Fault> {
        let op = self.operation(key)?;
        let mut tx = self.pool.begin().await?;
        let Begin::Started(claim) = self.once.begin(&mut tx, &op).await? else {
            return Err(anyhow::anyhow!("a new key is not new"));
        };
        let value = self.insert(&mut tx, key).await?;
        claim.complete(&mut tx, Response::json(&value)?).await?;
        tx.commit().await?;
        Ok(value)
    }

    async fn leased(&self, key: &str) -> Result<String, Fault> {
        let (op, lease) = (self.operation(key)?, Lease::new(Duration::from_secs(60))?);
        let work = async |work: &mut LeasedWork| {
            let tx = work.last_tx().await?;
            Ok::<_, pgonce::Failure>(self.insert(tx, key).await?)
        };
        Ok(self.once.run_leased(&self.pool, &op, lease, work).await?.into_inner())
    }
}

pub(crate) fn fingerprint() -> Fingerprint {
    Fingerprint::of_bytes("request")
}

/// The key of a number. Keys are in no order, like random ones. `fill` makes the same keys in SQL.
pub(crate) fn key(number: u64) -> String {
    let digest = Sha256::digest(number.to_string());
    format!("k-{}", hex(&digest[..16]))
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
}
