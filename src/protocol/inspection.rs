//! Looking at keys: for operators, dashboards and polling endpoints.

use std::time::Duration;

use serde::{Serialize, Serializer};
use sqlx::PgConnection;

use crate::client::{PgOnce, get, response};
use crate::error::{Result, database};
use crate::operation::key::{Key, Scope};
use crate::operation::response::Response;
use crate::protocol::claim::Claim;
use crate::protocol::record::{ClaimState, Listed, Record, Status, listed, record};

/// Which keys [`PgOnce::list`] returns; the default is all.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only keys of this scope.
    pub scope: Option<Scope>,
    /// Only keys with this name, which is one when a scope is given.
    pub key: Option<Key>,
    /// Only keys with this status.
    pub status: Option<Status>,
    /// Only unfinished keys whose claim is in this state.
    pub claim: Option<ClaimState>,
}

/// Counts over the whole table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Stats {
    /// Claims whose lease runs.
    pub live: u64,
    /// Claims whose lease has run out.
    pub lapsed: u64,
    /// Claims given back.
    pub released: u64,
    /// Keys finished with complete.
    pub completed: u64,
    /// Keys finished with fail.
    pub failed: u64,
    /// Keys past their retention, for the reaper.
    pub overdue: u64,
    /// The age of the oldest unfinished key. As JSON it is `oldest_in_progress_ms`.
    #[serde(rename = "oldest_in_progress_ms", serialize_with = "milliseconds")]
    pub oldest_in_progress: Option<Duration>,
    /// Size of the table with its TOAST, in bytes.
    pub table_bytes: u64,
    /// Size of its indexes, in bytes.
    pub index_bytes: u64,
}

fn milliseconds<S: Serializer>(time: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    time.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)).serialize(serializer)
}

/// What [`PgOnce::inspect`] finds: everything about one key.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Inspected {
    /// Where the operation stands.
    pub record: Record,
    /// The stored response; empty until the operation is finished.
    pub response: Response,
}

impl PgOnce {
    /// Looks at one key without locking it. `None`: the key is unknown, or its first claim is in a
    /// transaction that is still open. Needs the right to read the response, which an auditor does not have: for them
    /// [`list`](PgOnce::list) finds one key, too.
    ///
    /// ```no_run
    /// # use pgonce::{Key, PgOnce, Scope};
    /// # async fn example(pool: sqlx::PgPool, once: PgOnce) -> Result<(), Box<dyn std::error::Error>> {
    /// let (scope, key) = (Scope::new("acme/payments.create")?, Key::new("order-17")?);
    /// if let Some(found) = once.inspect(&mut *pool.acquire().await?, &scope, &key).await? {
    ///     println!("{:?} since {}", found.record.status, found.record.created_at);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Corrupt`](crate::ErrorKind::Corrupt) for a row with times that pgonce never writes, or what the
    /// database answers.
    ///
    /// # Cancel safety
    /// Cancel safe: it only reads.
    pub async fn inspect(
        &self,
        conn: &mut PgConnection,
        scope: &Scope,
        key: &Key,
    ) -> Result<Option<Inspected>> {
        let row = sqlx::query(self.statements.inspect_key.clone())
            .bind(scope.as_str())
            .bind(key.as_str())
            .fetch_optional(conn)
            .await
            .map_err(database)?;
        row.map(|row| Ok(Inspected { record: record(&row)?, response: response(&row)? }))
            .transpose()
    }

    /// Lists keys, ordered by scope and key. Needs no more than the rights of an auditor, who sees all of them. A row with
    /// a time that pgonce never writes is [`Corrupt`](Status::Corrupt), and that time the first or last there is.
    ///
    /// # Errors
    /// What the database answers.
    ///
    /// # Cancel safety
    /// Cancel safe: it only reads.
    pub async fn list(
        &self,
        conn: &mut PgConnection,
        filter: &Filter,
        limit: u32,
    ) -> Result<Vec<Listed>> {
        let rows = sqlx::query(self.statements.list.clone())
            .bind(filter.scope.as_ref().map(Scope::as_str))
            .bind(filter.key.as_ref().map(Key::as_str))
            .bind(filter.status.map(Status::as_str))
            .bind(filter.claim.map(ClaimState::as_str))
            .bind(i64::from(limit))
            .fetch_all(conn)
            .await
            .map_err(database)?;
        rows.iter().map(listed).collect()
    }

    /// Counts keys by what they are waiting for. Reads the whole table once. Needs no more than the rights of an
    /// auditor.
    ///
    /// # Errors
    /// What the database answers.
    ///
    /// # Cancel safety
    /// Cancel safe: it only reads.
    pub async fn stats(&self, conn: &mut PgConnection) -> Result<Stats> {
        let row = sqlx::query(self.statements.table_stats.clone())
            .fetch_one(conn)
            .await
            .map_err(database)?;
        let count = |column| get::<i64>(&row, column).map(i64::unsigned_abs);
        Ok(Stats {
            live: count("live")?,
            lapsed: count("lapsed")?,
            released: count("released")?,
            completed: count("completed")?,
            failed: count("failed")?,
            overdue: count("overdue")?,
            oldest_in_progress: get::<Option<i64>>(&row, "oldest_in_progress_ms")?
                .map(|ms| Duration::from_millis(ms.unsigned_abs())),
            table_bytes: count("table_bytes")?,
            index_bytes: count("index_bytes")?,
        })
    }

    /// Takes a claim from a holder that an operator knows to be gone: the key can be begun again at once, as after
    /// [`release`](crate::Claim::release). `seen` is what the decision was based on. To be called in a transaction.
    ///
    /// # Errors
    /// [`ClaimLost`](crate::ErrorKind::ClaimLost), in words, when the key is not, or no longer, as it was seen.
    ///
    /// # Cancel safety
    /// Dropped before it returns, it may or may not be in the transaction: roll it back.
    pub async fn revoke_claim(
        &self,
        conn: &mut PgConnection,
        scope: &Scope,
        key: &Key,
        seen: &Record,
    ) -> Result<()> {
        sqlx::query(self.statements.revoke_claim.clone())
            .bind(scope.as_str())
            .bind(key.as_str())
            .bind(&seen.seen)
            .execute(conn)
            .await
            .map(drop)
            .map_err(database)
    }

    /// Gives an operator the claim on a key without a live holder: lapsed, released, or
    /// [held](crate::Begin::Held). To be called in a transaction, and finished in it:
    /// [`complete`](Claim::complete) or [`fail`](Claim::fail) with what has become of it, or
    /// [`release`](Claim::release) to let it run again, for which the attempts so far no longer count
    /// against [`max_attempts`](crate::Policy::max_attempts).
    ///
    /// `seen` is what the decision was based on.
    ///
    /// ```no_run
    /// # use pgonce::{Key, PgOnce, Response, Scope};
    /// # async fn example(pool: sqlx::PgPool, once: PgOnce) -> Result<(), Box<dyn std::error::Error>> {
    /// let (scope, key) = (Scope::new("acme/orders.checkout")?, Key::new("order-17")?);
    /// let mut tx = pool.begin().await?;
    /// if let Some(found) = once.inspect(&mut tx, &scope, &key).await? {
    ///     let claim = once.take_over_claim(&mut tx, &scope, &key, &found.record).await?;
    ///     claim.complete(&mut tx, Response::json(&"paid by hand")?).await?;
    ///     pgonce::commit(tx).await?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ClaimLost`](crate::ErrorKind::ClaimLost), in words, when the key is not, or no longer, as it was seen: its
    /// claim is live, it is finished or forgotten, or another session works on it. Roll back.
    ///
    /// # Cancel safety
    /// Dropped before it returns, the claim may or may not be in the transaction: roll it back.
    pub async fn take_over_claim(
        &self,
        conn: &mut PgConnection,
        scope: &Scope,
        key: &Key,
        seen: &Record,
    ) -> Result<Claim> {
        let token = sqlx::query_scalar(self.statements.take_over_claim.clone())
            .bind(scope.as_str())
            .bind(key.as_str())
            .bind(&seen.seen)
            .fetch_one(conn)
            .await
            .map_err(database)?;
        let counts = self.telemetry.of(&self.class);
        Ok(self.claim(scope, key, token, seen.attempt, counts))
    }
}
