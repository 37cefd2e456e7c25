//! One key in full, without what only a person who asks should see.

use std::fmt;

use serde_json::Value;
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::client::{PgOnce, get};
use crate::error::{Result, database};
use crate::operation::key::{Key, Scope};
use crate::protocol::answer::HeldBecause;
use crate::protocol::record::{Record, record, time_if_any};
use crate::protocol::unfinished::{UnfinishedState, held_because};

/// What [`PgOnce::details`] finds: all that the tables know of a key, without its response and its steps' outputs.
#[derive(Clone, PartialEq)]
#[non_exhaustive]
pub struct Details {
    /// Where the operation stands.
    pub record: Record,
    /// Length of the stored response's headers, in bytes.
    pub response_headers_bytes: Option<u32>,
    /// Length of the stored response's body, in bytes.
    pub response_body_bytes: Option<u32>,
    /// Whether it is forgotten, and waits for the reaper.
    pub overdue: bool,
    /// Whether its last claim has, or had, a lease.
    pub leased: bool,
    /// How many attempts count toward the limit.
    pub used: u32,
    /// What the holder reported last, if that is JSON.
    pub progress: Option<Value>,
    /// How the last failed attempt ended.
    pub last_error: Option<String>,
    /// What it is waiting for; `None` unless it is leased, or a failed message, and unfinished.
    pub state: Option<UnfinishedState>,
    /// Why it is held.
    pub held_because: Option<HeldBecause>,
    /// Whether it may be a message; see [`Unfinished`](crate::Unfinished).
    pub is_message: bool,
    /// The limit of attempts of its last begin, while it is unfinished.
    pub max_attempts: Option<u32>,
    /// How often a recovery has picked it.
    pub tries: Option<u32>,
    /// When a recovery may pick it.
    pub try_at: Option<OffsetDateTime>,
}

// By hand: progress and error are between the work and those who ask.
impl fmt::Debug for Details {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Details")
            .field("record", &self.record)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

/// A recorded step of leased work; see [`PgOnce::steps`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StepDone {
    /// Its place, from 1.
    pub number: u32,
    /// Its name.
    pub name: String,
    /// When it was recorded.
    pub recorded_at: Option<OffsetDateTime>,
    /// Length of its output, in bytes.
    pub output_bytes: u32,
}

impl PgOnce {
    /// Everything about one key except its response and its steps' outputs. `None`: the key is unknown, or its first
    /// claim is in a transaction that is still open. Locks nothing.
    ///
    /// # Errors
    /// As [`inspect`](PgOnce::inspect).
    ///
    /// # Cancel safety
    /// Cancel safe: it only reads.
    pub async fn details(
        &self,
        conn: &mut PgConnection,
        scope: &Scope,
        key: &Key,
    ) -> Result<Option<Details>> {
        let row = sqlx::query(self.statements.key_details.clone())
            .bind(scope.as_str())
            .bind(key.as_str())
            .fetch_optional(conn)
            .await
            .map_err(database)?;
        let Some(row) = row else { return Ok(None) };
        let perhaps = |column| get::<Option<i32>>(&row, column).map(|n| n.map(i32::unsigned_abs));
        let progress: Option<Vec<u8>> = get(&row, "progress")?;
        Ok(Some(Details {
            record: record(&row)?,
            response_headers_bytes: perhaps("response_headers_bytes")?,
            response_body_bytes: perhaps("response_body_bytes")?,
            overdue: get(&row, "overdue")?,
            leased: get(&row, "leased")?,
            used: get::<i32>(&row, "used")?.unsigned_abs(),
            progress: progress.and_then(|said| serde_json::from_slice(&said).ok()),
            last_error: get(&row, "last_error")?,
            state: get::<Option<&str>>(&row, "state")?.and_then(UnfinishedState::of),
            held_because: held_because(&row)?,
            is_message: get(&row, "is_message")?,
            max_attempts: perhaps("max_attempts")?,
            tries: perhaps("tries")?,
            try_at: time_if_any(&row, "try_at")?,
        }))
    }

    /// The recorded steps of a key, in order.
    ///
    /// # Errors
    /// What the database answers.
    ///
    /// # Cancel safety
    /// Cancel safe: it only reads.
    pub async fn steps(
        &self,
        conn: &mut PgConnection,
        scope: &Scope,
        key: &Key,
    ) -> Result<Vec<StepDone>> {
        let rows = sqlx::query(self.statements.key_steps.clone())
            .bind(scope.as_str())
            .bind(key.as_str())
            .fetch_all(conn)
            .await
            .map_err(database)?;
        let step = |row| {
            Ok(StepDone {
                number: get::<i32>(row, "number")?.unsigned_abs(),
                name: get(row, "name")?,
                recorded_at: time_if_any(row, "recorded_at")?,
                output_bytes: get::<i32>(row, "output_bytes")?.unsigned_abs(),
            })
        };
        rows.iter().map(step).collect()
    }

    /// The recorded output of one step, as JSON wrote it; `None` if there is no such step.
    ///
    /// # Errors
    /// What the database answers.
    ///
    /// # Cancel safety
    /// Cancel safe: it only reads.
    pub async fn step_output(
        &self,
        conn: &mut PgConnection,
        scope: &Scope,
        key: &Key,
        name: &str,
    ) -> Result<Option<Vec<u8>>> {
        sqlx::query_scalar(self.statements.step_output.clone())
            .bind(scope.as_str())
            .bind(key.as_str())
            .bind(name)
            .fetch_one(conn)
            .await
            .map_err(database)
    }
}
