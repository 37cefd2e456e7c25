//! A key as the table has it, without its response.

use std::fmt;

use serde::{Serialize, Serializer};
use sqlx::postgres::PgRow;
use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, PrimitiveDateTime};

use crate::client::get;
use crate::error::{Error, ErrorKind, Result};

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
    /// A digest of the claim and its state. [`revoke_claim`](crate::PgOnce::revoke_claim),
    /// [`take_over_claim`](crate::PgOnce::take_over_claim) and [`Inbox::redrive`](crate::Inbox::redrive) take it, and refuse
    /// when the key has changed since.
    pub seen: String,
    /// Whether the key is bound to a request.
    pub fingerprinted: bool,
    /// When the key was first begun, or begun anew after a release or after it was forgotten.
    #[serde(serialize_with = "as_text")]
    pub created_at: OffsetDateTime,
    /// When it was completed or failed.
    #[serde(serialize_with = "as_text_if_any")]
    pub completed_at: Option<OffsetDateTime>,
    /// When the claim lapses or has lapsed.
    #[serde(serialize_with = "as_text")]
    pub lease_expires_at: OffsetDateTime,
    /// When the key is forgotten.
    #[serde(serialize_with = "as_text")]
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

/// A row of [`PgOnce::list`](crate::PgOnce::list). `Debug` does not show scope and key; as JSON it has both.
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

/// A time as RFC 3339. `None` beyond the year 9999, which has no such form.
pub(crate) fn rfc3339(time: OffsetDateTime) -> Option<String> {
    time.format(&Rfc3339).ok()
}

pub(crate) fn as_text<S: Serializer>(
    time: &OffsetDateTime,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    rfc3339(*time).serialize(serializer)
}

fn as_text_if_any<S: Serializer>(
    time: &Option<OffsetDateTime>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    time.and_then(rfc3339).serialize(serializer)
}

/// A time of a row that only pgonce writes.
pub(crate) fn time(row: &PgRow, column: &str) -> Result<OffsetDateTime> {
    let nanos = i128::from(get::<i64>(row, column)?) * 1000;
    OffsetDateTime::from_unix_timestamp_nanos(nanos).map_err(|_| corrupt())
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
        let (time, is_real) = of_micros(micros);
        is_sound &= is_real;
        Ok(Some(time))
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

/// The time, and whether it is a real one: others are cut to the first or the last that there is.
fn of_micros(micros: i64) -> (OffsetDateTime, bool) {
    let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1000);
    let end = if micros > 0 { PrimitiveDateTime::MAX } else { PrimitiveDateTime::MIN };
    (time.unwrap_or(end.assume_utc()), time.is_ok())
}

/// A time that says nothing about whether its row is sound.
pub(crate) fn time_if_any(row: &PgRow, column: &str) -> Result<Option<OffsetDateTime>> {
    Ok(get::<Option<i64>>(row, column)?.map(|micros| of_micros(micros).0))
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
