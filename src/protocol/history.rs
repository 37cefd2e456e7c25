//! Reading the history: what callers were answered, per minute and scope.

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use sqlx::PgConnection;
use sqlx::postgres::PgRow;
use time::OffsetDateTime;

use crate::client::{PgOnce, get};
use crate::error::{Result, database};
use crate::operation::key::Scope;
use crate::operation::limits::{outside, spelled};
use crate::protocol::record::{as_text, time};

/// Which part of the history [`PgOnce::history`] returns.
#[derive(Debug, Clone)]
pub struct HistoryQuery {
    /// The first moment.
    pub from: OffsetDateTime,
    /// The first moment that is not part of it.
    pub until: OffsetDateTime,
    /// The length of a bucket: one minute to seven days, in whole seconds; at most 10,000 buckets.
    pub step: Duration,
    /// Only this scope.
    pub scope: Option<Scope>,
}

/// What callers were answered in one step of time; see [`PgOnce::history`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct HistoryBucket {
    /// When the step begins: a multiple of the step's length since 1970.
    #[serde(serialize_with = "as_text")]
    pub at: OffsetDateTime,
    /// What was counted.
    #[serde(flatten)]
    pub counts: HistoryCounts,
}

/// What callers of one scope and class were answered; see [`PgOnce::history_by_scope`]. `Debug` does not show the scope;
/// as JSON it is there.
#[derive(Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct HistoryScope {
    /// The scope. Empty: other scopes, beyond the number that a process tells apart.
    pub scope: String,
    /// The class of the operations.
    pub class: String,
    /// What was counted.
    #[serde(flatten)]
    pub counts: HistoryCounts,
}

/// Counts of the history.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct HistoryCounts {
    /// Calls that got the claim.
    pub started: u64,
    /// Calls that got a stored response.
    pub replayed: u64,
    /// Calls that were told that another caller is at work.
    pub in_progress: u64,
    /// Calls with another request than the key's.
    pub mismatch: u64,
    /// Calls that were told that an operator must decide.
    pub held: u64,
    /// Calls that got the claim and continued an earlier attempt.
    pub recovered: u64,
    /// Operations that were completed.
    pub completed: u64,
    /// Operations that failed for good.
    pub failed: u64,
    /// Claims that were given back.
    pub released: u64,
    /// Claims that their holder had lost.
    pub claim_lost: u64,
    /// Commits without an answer.
    pub commit_unknown: u64,
    /// Work prevented: replays, and messages that the inbox had seen.
    pub duplicates: u64,
    /// What the prevented work was worth, in the unit of the processes that recorded it.
    pub value: u64,
    /// Requests without a key.
    pub unkeyed: u64,
    /// While protection was only observed: calls that it would have answered without work.
    pub observed_duplicates: u64,
    /// While protection was only observed: calls that it would have refused for another request's key.
    pub observed_mismatches: u64,
    /// What the observed duplicates were worth.
    pub observed_value: u64,
}

impl PgOnce {
    /// What callers were answered over time, summed over all processes that keep a [`History`](crate::History). Steps in
    /// which nothing was recorded are left out.
    ///
    /// Only reads. Needs the right to read `history`.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use pgonce::{HistoryQuery, PgOnce};
    /// # async fn example(pool: sqlx::PgPool, once: PgOnce) -> Result<(), Box<dyn std::error::Error>> {
    /// let until = time::OffsetDateTime::now_utc();
    /// let step = Duration::from_secs(3600);
    /// let day = HistoryQuery { from: until - time::Duration::DAY, until, step, scope: None };
    /// for bucket in once.history(&mut *pool.acquire().await?, &day).await? {
    ///     println!("{}: {} duplicates prevented", bucket.at, bucket.counts.duplicates);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for a step or a number of steps outside its limits, or what the
    /// database answers.
    ///
    /// # Cancel safety
    /// Cancel safe: it only reads.
    pub async fn history(
        &self,
        conn: &mut PgConnection,
        query: &HistoryQuery,
    ) -> Result<Vec<HistoryBucket>> {
        let step = i32::try_from(query.step.as_secs()).ok();
        let Some(step) = step.filter(|_| query.step.subsec_nanos() == 0) else {
            let takes = "whole seconds, one minute to seven days";
            return Err(outside("step", &spelled(query.step), takes));
        };
        let rows = sqlx::query(self.statements.history.clone())
            .bind(seconds(query.from))
            .bind(seconds(query.until))
            .bind(step)
            .bind(query.scope.as_ref().map(Scope::as_str))
            .fetch_all(conn)
            .await
            .map_err(database)?;
        let bucket =
            |row: &PgRow| Ok(HistoryBucket { at: time(row, "bucket")?, counts: counts(row)? });
        rows.iter().map(bucket).collect()
    }

    /// What callers were answered from `from` on and before `until`, per scope and class, those with the most started
    /// operations first. `limit`: 1 to 10,000.
    ///
    /// Only reads. Needs the right to read `history`.
    ///
    /// ```no_run
    /// # async fn example(pool: sqlx::PgPool, once: pgonce::PgOnce) -> Result<(), Box<dyn std::error::Error>> {
    /// let until = time::OffsetDateTime::now_utc();
    /// let from = until - time::Duration::HOUR;
    /// for row in once.history_by_scope(&mut *pool.acquire().await?, from, until, 20).await? {
    ///     println!("{}: {} started", row.scope, row.counts.started);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for a limit outside its range, or what the database answers.
    ///
    /// # Cancel safety
    /// Cancel safe: it only reads.
    pub async fn history_by_scope(
        &self,
        conn: &mut PgConnection,
        from: OffsetDateTime,
        until: OffsetDateTime,
        limit: u32,
    ) -> Result<Vec<HistoryScope>> {
        let rows = sqlx::query(self.statements.history_by_scope.clone())
            .bind(seconds(from))
            .bind(seconds(until))
            .bind(i32::try_from(limit).unwrap_or(i32::MAX))
            .fetch_all(conn)
            .await
            .map_err(database)?;
        let scope = |row: &PgRow| {
            Ok(HistoryScope {
                scope: get(row, "scope")?,
                class: get(row, "class")?,
                counts: counts(row)?,
            })
        };
        rows.iter().map(scope).collect()
    }
}

/// Seconds since 1970, as `to_timestamp` takes them.
pub(super) fn seconds(at: OffsetDateTime) -> f64 {
    at.unix_timestamp_nanos() as f64 / 1e9
}

fn counts(row: &PgRow) -> Result<HistoryCounts> {
    let count = |column| get::<i64>(row, column).map(i64::unsigned_abs);
    Ok(HistoryCounts {
        started: count("started")?,
        replayed: count("replayed")?,
        in_progress: count("in_progress")?,
        mismatch: count("mismatch")?,
        held: count("held")?,
        recovered: count("recovered")?,
        completed: count("completed")?,
        failed: count("failed")?,
        released: count("released")?,
        claim_lost: count("claim_lost")?,
        commit_unknown: count("commit_unknown")?,
        duplicates: count("duplicates")?,
        value: count("value")?,
        unkeyed: count("unkeyed")?,
        observed_duplicates: count("observed_duplicates")?,
        observed_mismatches: count("observed_mismatches")?,
        observed_value: count("observed_value")?,
    })
}

// By hand: a derived one would show the scope.
impl fmt::Debug for HistoryScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HistoryScope")
            .field("class", &self.class)
            .field("counts", &self.counts)
            .finish_non_exhaustive()
    }
}
