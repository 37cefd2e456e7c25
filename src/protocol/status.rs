//! How far an operation is, for those who poll.

use std::fmt;

use serde::de::DeserializeOwned;
use serde::ser::{Serialize, SerializeStruct, Serializer};
use serde_json::Value;
use sqlx::PgConnection;

use crate::client::{PgOnce, get};
use crate::error::{Error, ErrorKind, Result, database};
use crate::operation::key::{Key, Scope};
use crate::protocol::record::{ClaimState, Record, record, rfc3339};

/// How far an operation is.
///
/// As JSON ([`Serialize`]) it is what a client that polls may see: status, claim, attempt, steps, progress,
/// response code and times (RFC 3339). It has no key, no token, no outputs, no response and no error in it.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// What the table says about the key.
    pub record: Record,
    /// The names of the [steps](crate::Work::step) that are done, in the order in which they were recorded.
    pub steps: Vec<String>,
    /// How the last attempt that failed ended: for operators, without what it was about.
    pub last_error: Option<String>,
    said: Option<Vec<u8>>,
}

impl Progress {
    /// What [`Work::progress`](crate::Work::progress) said last, if it said something; as a
    /// [`serde_json::Value`] or as a type of yours.
    ///
    /// # Errors
    /// [`Encoding`](ErrorKind::Encoding) when it is not JSON of this type.
    pub fn said<T: DeserializeOwned>(&self) -> Result<Option<T>> {
        let read = |said: &Vec<u8>| serde_json::from_slice(said);
        // The parser's own message can quote what it read, so it is not carried along.
        self.said.as_ref().map(read).transpose().map_err(|_| {
            Error::new(ErrorKind::Encoding, "the progress is not JSON of the wanted type")
        })
    }
}

impl PgOnce {
    /// How far an operation is, without locking it. `None`: the key is unknown or forgotten, or its first
    /// claim is in a transaction that is still open.
    ///
    /// The caller decides who may ask: build the scope from the tenant or user, as for begin.
    ///
    /// ```no_run
    /// # use pgonce::{Key, PgOnce, Scope};
    /// # async fn example(pool: sqlx::PgPool, once: PgOnce) -> Result<(), Box<dyn std::error::Error>> {
    /// let (scope, key) = (Scope::new("acme/orders.checkout")?, Key::new("order-17")?);
    /// if let Some(progress) = once.status(&mut *pool.acquire().await?, &scope, &key).await? {
    ///     println!("{:?}, done: {}", progress.record.status, progress.steps.join(", "));
    ///     println!("{:?}", progress.said::<serde_json::Value>()?);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`inspect`](PgOnce::inspect).
    ///
    /// # Cancel safety
    /// Cancel safe: it only reads.
    pub async fn status(
        &self,
        conn: &mut PgConnection,
        scope: &Scope,
        key: &Key,
    ) -> Result<Option<Progress>> {
        let row = sqlx::query(self.statements.operation_status.clone())
            .bind(scope.as_str())
            .bind(key.as_str())
            .fetch_optional(conn)
            .await
            .map_err(database)?;
        row.map(|row| {
            Ok(Progress {
                record: record(&row)?,
                steps: get(&row, "steps")?,
                last_error: get(&row, "last_error")?,
                said: get(&row, "progress")?,
            })
        })
        .transpose()
    }
}

impl Serialize for Progress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let record = &self.record;
        let mut shown = serializer.serialize_struct("Progress", 11)?;
        shown.serialize_field("status", record.status.as_str())?;
        shown.serialize_field("claim", &record.claim.map(ClaimState::as_str))?;
        shown.serialize_field("attempt", &record.attempt)?;
        shown.serialize_field("steps", &self.steps)?;
        // Another program may have said something else than JSON; no reason to hide the rest.
        shown.serialize_field("progress", &self.said::<Value>().unwrap_or_default())?;
        shown.serialize_field("created_at", &rfc3339(record.created_at))?;
        shown.serialize_field("completed_at", &record.completed_at.map(rfc3339))?;
        shown.serialize_field("lease_expires_at", &rfc3339(record.lease_expires_at))?;
        shown.serialize_field("expires_at", &rfc3339(record.expires_at))?;
        shown.serialize_field("response_code", &record.response_code)?;
        shown.serialize_field("response_omitted", &record.response_omitted)?;
        shown.end()
    }
}

// By hand: what was said is between the work and those who poll.
impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Progress")
            .field("record", &self.record)
            .field("steps", &self.steps)
            .field("last_error", &self.last_error)
            .field("said_bytes", &self.said.as_ref().map(Vec::len))
            .finish()
    }
}
