//! Looking at keys: for operators, dashboards and polling endpoints.

use std::fmt;
use std::time::Duration;

use serde::{Serialize, Serializer};
use sqlx::PgConnection;
use sqlx::postgres::PgRow;
use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, PrimitiveDateTime};

use crate::client::{PgOnce, get, response};
use crate::error::{Error, ErrorKind, Result, database};
use crate::operation::key::{Key, Scope};
use crate::operation::response::Response;
use crate::protocol::claim::Claim;

/// What the table says about one key, without its response. As JSON its times are RFC 3339.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Record {
    /// Where the operation stands.
    pub status: Status,
    /// What an unfinished operation is waiting for; `None` when it is finished.
    pub claim: Option<ClaimState>,
    /// How many claims the key has had.
    pub attempt: u32,
    /// A digest of the claim and its state. [`revoke_claim`](PgOnce::revoke_claim),
    /// [`take_over_claim`](PgOnce::take_over_claim) and [`Inbox::redrive`](crate::Inbox::redrive) take it, and refuse
    /// when the key has changed since.
    pub seen: String,
    /// Whether the key is bound to a request.
    pub fingerprinted: bool,
    /// When the key was first begun, or begun anew after a release or after it was forgotten.
    #[serde(serialize_with = "rfc3339")]
    pub created_at: OffsetDateTime,
    /// When it was completed or failed.
    #[serde(serialize_with = "rfc3339_if_any")]
    pub completed_at: Option<OffsetDateTime>,
    /// When the claim lapses or has lapsed.
    #[serde(serialize_with = "rfc3339")]
    pub lease_expires_at: OffsetDateTime,
    /// When the key is forgotten.
    #[serde(serialize_with = "rfc3339")]
    pub expires_at: OffsetDateTime,
    /// The code of the stored response.
    pub response_code: Option<i32>,
    /// Whether the response was not kept.
    pub response_omitted: bool,
}

/// Where an operation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Status {
    /// Begun and not finished.
    InProgress,
    /// Finished with complete.
    Completed,
    /// Finished with fail.
    Failed,
    /// The row holds a status that pgonce never writes; begin refuses it. In a list also: a time.
    Corrupt,
}

/// What an operation in progress is waiting for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ClaimState {
    /// Its holder, whose lease runs.
    Live,
    /// The next begin, which takes it over, or an operator.
    Lapsed,
    /// The next begin: the holder gave it back.
    Released,
}

/// A row of [`PgOnce::list`]. `Debug` does not show scope and key; as JSON it has both.
#[derive(Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Listed {
    /// The scope.
    pub scope: String,
    /// The key.
    pub key: String,
    /// The rest.
    #[serde(flatten)]
    pub record: Record,
}

impl fmt::Debug for Listed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listed")
            .field("scope_bytes", &self.scope.len())
            .field("key_bytes", &self.key.len())
            .field("record", &self.record)
            .finish()
    }
}

fn rfc3339<S: Serializer>(time: &OffsetDateTime, serializer: S) -> Result<S::Ok, S::Error> {
    rfc3339_if_any(&Some(*time), serializer)
}

/// Null beyond the year 9999, which has no such form.
fn rfc3339_if_any<S: Serializer>(
    time: &Option<OffsetDateTime>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    time.and_then(|time| time.format(&Rfc3339).ok()).serialize(serializer)
}

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
    /// [`Corrupt`](ErrorKind::Corrupt) for a row with times that pgonce never writes, or what the
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
    /// [`ClaimLost`](ErrorKind::ClaimLost), in words, when the key is not, or no longer, as it was seen.
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
    /// [`ClaimLost`](ErrorKind::ClaimLost), in words, when the key is not, or no longer, as it was seen: its
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
        Ok(self.claim(scope, key, token, seen.attempt))
    }
}

pub(crate) fn record(row: &PgRow) -> Result<Record> {
    match fields(row)? {
        (record, true) => Ok(record),
        _ => Err(corrupt()),
    }
}

/// A row of a list is always one: a corrupt row must not hide the others.
pub(crate) fn listed(row: &PgRow) -> Result<Listed> {
    let (mut record, is_sound) = fields(row)?;
    if !is_sound {
        record.status = Status::Corrupt;
    }
    Ok(Listed { scope: get(row, "scope")?, key: get(row, "key")?, record })
}

/// What the row says, and whether its times are real ones: others are cut to the first or the last that there is.
fn fields(row: &PgRow) -> Result<(Record, bool)> {
    let mut is_sound = true;
    let mut time = |column| -> Result<Option<OffsetDateTime>> {
        let Some(micros) = get::<Option<i64>>(row, column)? else { return Ok(None) };
        let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1000);
        is_sound &= time.is_ok();
        let end = if micros > 0 { PrimitiveDateTime::MAX } else { PrimitiveDateTime::MIN };
        Ok(Some(time.unwrap_or(end.assume_utc())))
    };
    let record = Record {
        status: match get::<&str>(row, "status")? {
            "in_progress" => Status::InProgress,
            "completed" => Status::Completed,
            "failed" => Status::Failed,
            _ => Status::Corrupt,
        },
        claim: get::<Option<&str>>(row, "claim")?.map(|claim| match claim {
            "live" => ClaimState::Live,
            "released" => ClaimState::Released,
            _ => ClaimState::Lapsed,
        }),
        attempt: get::<i32>(row, "attempt")?.unsigned_abs(),
        seen: get(row, "seen")?,
        fingerprinted: get(row, "fingerprinted")?,
        created_at: time("created_at")?.ok_or_else(corrupt)?,
        completed_at: time("completed_at")?,
        lease_expires_at: time("lease_expires_at")?.ok_or_else(corrupt)?,
        expires_at: time("expires_at")?.ok_or_else(corrupt)?,
        response_code: get(row, "response_code")?,
        response_omitted: get(row, "response_omitted")?,
    };
    Ok((record, is_sound))
}

fn corrupt() -> Error {
    Error::new(ErrorKind::Corrupt, "the stored row has a time that pgonce never writes")
}

impl Status {
    /// The word the protocol uses.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InProgress => "in_progress",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Corrupt => "corrupt",
        }
    }
}

impl ClaimState {
    /// The word the protocol uses.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Lapsed => "lapsed",
            Self::Released => "released",
        }
    }
}
