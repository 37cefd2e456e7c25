//! Keeps a history: counts in memory what callers are answered, and writes the counts to the database now and then.

mod tally;

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sqlx::PgPool;
use uuid::Uuid;

use crate::client::PgOnce;
use crate::error::Result;
use crate::leased::before::before;
use crate::operation::class::Class;
use crate::operation::key::Scope;
use crate::operation::limits::{check_pause, check_retention};
use crate::operation::millis;
use crate::protocol::procedure;
use crate::telemetry::Event;
use tally::{
    DUPLICATES, OBSERVED_DUPLICATES, OBSERVED_MISMATCHES, OBSERVED_VALUE, REPLAYED, Row, Tally,
    UNKEYED, VALUE,
};

/// Keeps a history of what callers are answered: how many operations started, were replayed, failed, per minute, scope
/// and [class](crate::Class). Off unless a client is given one ([`PgOnce::keep_history`]).
///
/// A call counts in memory. [`run_until`](History::run_until) writes the counts to the table `history` in batches, where
/// [`PgOnce::history`] reads them; the [`Reaper`](crate::Reaper) deletes old ones. Cheap to clone: clones count together.
/// Make one per process.
///
/// Up to 10,000 different minutes, scopes and classes are told apart until they are written; scopes beyond count
/// together, under an empty scope. A process that ends without [`run_until`](History::run_until) or
/// [`flush`](History::flush) loses the counts of the last seconds. Minutes are those of the process's clock.
///
/// ```no_run
/// use std::time::Duration;
/// use pgonce::{History, PgOnce};
/// # async fn example(pool: sqlx::PgPool) -> Result<(), Box<dyn std::error::Error>> {
/// let history = History::new(Duration::from_secs(30 * 86_400))?;
/// let once = PgOnce::new().keep_history(&history);
/// let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
/// let task = tokio::spawn({
///     let once = once.clone();
///     async move { history.run_until(&once, pool, stopped).await }
/// });
/// // at shutdown
/// drop(stop);
/// task.await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct History {
    interval: Duration,
    retention: Duration,
    /// Of this process: it writes no other rows.
    source: Uuid,
    tally: Arc<Mutex<Tally>>,
}

const INTERVAL_DEFAULT: Duration = Duration::from_secs(10);
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// Rows of one statement.
const BATCH_ROWS: usize = 1000;
/// A batch that takes longer has met a dead connection.
const BATCH_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a shutdown waits for the last counts to be written.
const LAST_MAX: Duration = Duration::from_secs(5);
const SECONDS_PER_MINUTE: u64 = 60;
/// The largest count of a row.
const COUNT_MAX: u64 = 1_000_000_000_000_000;

/// The place of an event in a row. Others are metrics only.
fn counter(event: Event) -> Option<usize> {
    Some(match event {
        Event::Started => 0,
        Event::Replayed => REPLAYED,
        Event::InProgress => 2,
        Event::Mismatch => 3,
        Event::Held => 4,
        Event::Recovered => 5,
        Event::Completed => 6,
        Event::Failed => 7,
        Event::Released => 8,
        Event::ClaimLost => 9,
        Event::CommitUnknown => 10,
        Event::Unkeyed => UNKEYED,
        Event::ObservedMismatch => OBSERVED_MISMATCHES,
        _ => return None,
    })
}

impl History {
    /// A history whose rows are kept for this long: 1 ms to ten years. Written every ten seconds.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) outside these limits.
    pub fn new(retention: Duration) -> Result<Self> {
        check_retention("retention", retention)?;
        Ok(Self {
            interval: INTERVAL_DEFAULT,
            retention,
            source: Uuid::new_v4(),
            tally: Arc::default(),
        })
    }

    /// The time between two writes: 1 ms to one day. It varies by up to a tenth, so that processes do not write in step.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) outside these limits.
    pub fn interval(mut self, interval: Duration) -> Result<Self> {
        check_pause("interval", interval)?;
        self.interval = interval;
        Ok(self)
    }

    /// Counts an event in memory. A replay is counted by [`replayed`](Self::replayed).
    pub(crate) fn count(&self, scope: &str, class: &Class, event: Event) {
        if event != Event::Replayed
            && let Some(counter) = counter(event)
        {
            self.tally().add(this_minute(), scope, class, &[(counter, 1)]);
        }
    }

    /// Counts a duplicate that was prevented, and what it was worth.
    pub(crate) fn replayed(&self, scope: &Scope, class: &Class, value: u64) {
        let counters = [(REPLAYED, 1), (DUPLICATES, 1), (VALUE, value)];
        self.tally().add(this_minute(), scope.as_str(), class, &counters);
    }

    /// Counts a duplicate that would have been prevented.
    pub(crate) fn would_be_duplicate(&self, scope: &Scope, class: &Class, value: u64) {
        let counters = [(OBSERVED_DUPLICATES, 1), (OBSERVED_VALUE, value)];
        self.tally().add(this_minute(), scope.as_str(), class, &counters);
    }

    /// Writes the counts that are not written yet, and returns how many rows that took. Adds up to one row per minute,
    /// scope and class; locks no other process's rows.
    ///
    /// # Errors
    /// Errors of the database. What was not written is written by the next call.
    ///
    /// # Cancel safety
    /// Cancel safe: what may not have been written is written again, which changes nothing.
    pub async fn flush(&self, once: &PgOnce, pool: &PgPool) -> Result<u64> {
        let rows = self.tally().unwritten();
        for batch in rows.chunks(BATCH_ROWS) {
            self.write(once, pool, batch).await?;
            self.tally().written(batch, this_minute());
        }
        Ok(rows.len() as u64)
    }

    async fn write(&self, once: &PgOnce, pool: &PgPool, rows: &[Row]) -> Result<()> {
        let (mut minutes, mut scopes, mut classes, mut counts) = (vec![], vec![], vec![], vec![]);
        for row in rows {
            minutes.push(i64::try_from(row.minute).unwrap_or(i64::MAX));
            scopes.push(row.scope.as_str());
            classes.push(row.class.as_str());
            counts.extend(row.totals.iter().map(|&total| total.min(COUNT_MAX).cast_signed()));
        }
        procedure::call(pool, BATCH_TIMEOUT, || {
            sqlx::query(once.statements.record_history.clone())
                .bind(self.source)
                .bind(&minutes)
                .bind(&scopes)
                .bind(&classes)
                .bind(&counts)
                .bind(millis(self.retention))
        })
        .await
        .map(drop)
    }

    /// Writes the counts again and again until `shutdown` completes, then a last time, for which it waits up to five
    /// seconds.
    ///
    /// Takes one connection per batch and gives it back in between. Logs errors and retries, with a growing pause of at
    /// most a minute; meanwhile the counts stay in memory.
    ///
    /// # Cancel safety
    /// Cancel safe, but prefer `shutdown`: if dropped, the last counts are not written.
    pub async fn run_until(&self, once: &PgOnce, pool: PgPool, shutdown: impl Future) {
        let mut shutdown = pin!(shutdown);
        let mut failures = 0_u32;
        let mut pause = self.interval.mul_f64(fastrand::f64());
        while before(&mut shutdown, tokio::time::sleep(pause)).await.is_some() {
            let Some(flushed) = before(&mut shutdown, self.flush(once, &pool)).await else { break };
            match flushed {
                Ok(_) => {
                    failures = 0;
                    pause = self.interval.mul_f64(0.9 + fastrand::f64() / 5.0);
                }
                Err(error) => {
                    failures += 1;
                    pause = Duration::from_secs(1 << failures.min(6)).min(BACKOFF_MAX);
                    tracing::warn!(kind = ?error.kind(), sqlstate = error.sqlstate(), "the history was not written");
                }
            }
            let lost = std::mem::take(&mut self.tally().lost);
            if lost > 0 {
                tracing::warn!(
                    counts = lost,
                    "the history has no room for more minutes; counts are lost"
                );
            }
        }
        match tokio::time::timeout(LAST_MAX, self.flush(once, &pool)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                tracing::warn!(kind = ?error.kind(), sqlstate = error.sqlstate(), "the last minutes of the history are lost");
            }
            Err(_) => tracing::warn!("the last minutes of the history are lost: no answer"),
        }
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Minutes since 1970.
fn this_minute() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_secs() / SECONDS_PER_MINUTE
}
