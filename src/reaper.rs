//! Deleting keys past their retention.

use std::pin::{Pin, pin};
use std::time::{Duration, Instant};

use sqlx::{PgConnection, PgPool};

use crate::before::before;
use crate::error::{Error, ErrorKind, Result, database, sqlstate_in};
use crate::once::{PgOnce, get};

/// What reaping did and what is left to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reaped {
    /// Keys deleted.
    pub deleted: u64,
    /// Keys past their retention that are still there, counted up to 100,000.
    pub backlog: u64,
    /// For how long the oldest of them has been overdue.
    pub oldest_overdue: Option<Duration>,
}

/// Deletes keys past their retention in the background.
///
/// Works in passes: a pass deletes batch after batch until nothing is overdue. The size of the
/// batches follows the time they take. Any number of reapers may run, in any number of processes;
/// none touches a live lease, and correctness never depends on any of them.
///
/// ```no_run
/// # async fn example(pool: sqlx::PgPool, once: pgonce::PgOnce) {
/// use pgonce::Reaper;
/// let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
/// let reaper = Reaper::new(&once);
/// let task = tokio::spawn(async move { reaper.run_until(pool, stopped).await });
/// // at shutdown
/// drop(stop);
/// let total = task.await;
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Reaper {
    once: PgOnce,
    interval: Duration,
    batch_budget: Duration,
}

const INTERVAL_DEFAULT: Duration = Duration::from_secs(60);
const INTERVAL_MAX: Duration = Duration::from_secs(86_400);
const BATCH_BUDGET_DEFAULT: Duration = Duration::from_millis(100);
const BATCH_ROWS_FIRST: u32 = 1000;
const BATCH_ROWS: std::ops::RangeInclusive<u32> = 100..=10_000;
/// A batch that takes longer hangs on a dead connection.
const BATCH_TIMEOUT: Duration = Duration::from_secs(60);
/// Between two batches, so that a long pass leaves room for others.
const BATCH_PAUSE: Duration = Duration::from_millis(10);
/// A pass that takes longer ends and reports; the next one looks at skipped keys again.
const PASS_MAX: Duration = Duration::from_secs(60);
const BACKOFF_MAX: Duration = Duration::from_secs(60);

/// Where a pass stands.
struct Pass {
    rows: u32,
    /// Everything before it is deleted; see `sql/reap.sql`.
    watermark_micros: Option<i64>,
    deleted: u64,
    /// Whether it ended because of its time and not for want of keys.
    cut_short: bool,
}

impl PgOnce {
    /// Deletes one batch of up to `limit` keys past their retention (1 to 100,000), oldest first.
    ///
    /// One statement; rows that others have locked are skipped, live leases are never touched.
    /// Repeat while `deleted` equals `limit`, or use [`Reaper::pass`], which also remembers where
    /// the last batch ended.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) for a limit outside its range, or what the
    /// database answers.
    ///
    /// # Cancel safety
    /// Cancel safe: dropped, the batch is deleted whole or not at all.
    pub async fn reap_once(&self, conn: &mut PgConnection, limit: u32) -> Result<Reaped> {
        let mut pass = Pass::new(limit);
        self.reap_batch(conn, &mut pass).await?;
        self.overdue(conn, pass.deleted).await
    }

    /// Deletes one batch and moves the watermark; returns how many.
    async fn reap_batch(&self, conn: &mut PgConnection, pass: &mut Pass) -> Result<u32> {
        let row = sqlx::query(self.statements.reap.clone())
            .bind(i32::try_from(pass.rows).unwrap_or(i32::MAX))
            .bind(pass.watermark_micros)
            .fetch_one(conn)
            .await
            .map_err(database)?;
        let deleted: i64 = get(&row, "deleted")?;
        pass.watermark_micros = get(&row, "watermark")?;
        pass.deleted += deleted.unsigned_abs();
        Ok(u32::try_from(deleted).unwrap_or(u32::MAX))
    }

    async fn overdue(&self, conn: &mut PgConnection, deleted: u64) -> Result<Reaped> {
        let row =
            sqlx::query(self.statements.overdue.clone()).fetch_one(conn).await.map_err(database)?;
        let backlog: i64 = get(&row, "backlog")?;
        let oldest_ms: Option<i64> = get(&row, "oldest_ms")?;
        Ok(Reaped {
            deleted,
            backlog: backlog.unsigned_abs(),
            oldest_overdue: oldest_ms.map(|ms| Duration::from_millis(ms.unsigned_abs())),
        })
    }
}

impl Reaper {
    /// A reaper with a pass every minute and batches of about 100 ms.
    #[must_use]
    pub fn new(once: &PgOnce) -> Self {
        Self { once: once.clone(), interval: INTERVAL_DEFAULT, batch_budget: BATCH_BUDGET_DEFAULT }
    }

    /// The time between two passes. Each is moved by up to a tenth, and the first comes at a random
    /// moment within it, so that many processes do not reap in step. 1 ms to one day; what lies
    /// outside is moved to the nearer end.
    #[must_use]
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval.clamp(Duration::from_millis(1), INTERVAL_MAX);
        self
    }

    /// How long a batch should take. Batches that take longer are halved, quick ones are doubled,
    /// between 100 and 10,000 keys.
    #[must_use]
    pub fn batch_budget(mut self, budget: Duration) -> Self {
        self.batch_budget = budget;
        self
    }

    /// Deletes everything overdue, batch after batch. For cron jobs and tests; each batch is its own
    /// transaction unless the caller has one open.
    ///
    /// # Errors
    /// What the database answers; the batches before it stay deleted.
    ///
    /// # Cancel safety
    /// Cancel safe: dropped, every batch is deleted whole or not at all.
    pub async fn pass(&self, conn: &mut PgConnection) -> Result<Reaped> {
        let mut pass = Pass::new(BATCH_ROWS_FIRST);
        while self.batch(conn, &mut pass).await? {}
        self.once.overdue(conn, pass.deleted).await
    }

    /// Runs passes until `shutdown` completes, and returns how many keys were deleted.
    ///
    /// Takes one connection per batch and gives it back in between. Errors are logged and retried
    /// with a growing pause of at most a minute. A batch that has begun is finished before the
    /// shutdown; nothing is left half done.
    ///
    /// # Cancel safety
    /// Cancel safe, but prefer `shutdown`: a dropped batch keeps its connection busy until it ends.
    pub async fn run_until(&self, pool: PgPool, shutdown: impl Future) -> u64 {
        let mut shutdown = pin!(shutdown);
        let mut total = 0;
        let mut failures = 0;
        let mut pause = self.interval.mul_f64(fastrand::f64());
        let mut rows = BATCH_ROWS_FIRST;
        while before(&mut shutdown, tokio::time::sleep(pause)).await.is_some() {
            let mut pass = Pass::new(rows);
            let ended = self.pass_until(&pool, &mut pass, &mut shutdown).await;
            total += pass.deleted;
            rows = pass.rows;
            match ended {
                Ok(None) => break,
                Ok(Some(reaped)) => {
                    failures = 0;
                    pause = match pass.cut_short {
                        true => BATCH_PAUSE,
                        false => self.interval.mul_f64(0.9 + fastrand::f64() / 5.0),
                    };
                    if reaped.deleted > 0 || reaped.backlog > 0 {
                        tracing::info!(
                            deleted = reaped.deleted,
                            backlog = reaped.backlog,
                            oldest_overdue_seconds =
                                reaped.oldest_overdue.unwrap_or_default().as_secs(),
                            "reaped"
                        );
                    }
                }
                Err(error) => {
                    failures += 1;
                    pause = Duration::from_secs(1 << failures.min(6)).min(BACKOFF_MAX);
                    tracing::warn!(kind = ?error.kind(), sqlstate = error.sqlstate(), "reaping failed");
                    // Cancelled by a statement_timeout, or no answer: the batch was far too large.
                    if sqlstate_in(&error) == Some("57014") || error.kind() == ErrorKind::Connection
                    {
                        rows = (rows / 10).max(*BATCH_ROWS.start());
                    }
                }
            }
        }
        total
    }

    /// A pass that stops between batches when `shutdown` completes, and then returns `None`.
    async fn pass_until(
        &self,
        pool: &PgPool,
        pass: &mut Pass,
        shutdown: &mut Pin<&mut impl Future>,
    ) -> Result<Option<Reaped>> {
        let began = Instant::now();
        loop {
            let Some(conn) = before(shutdown, pool.acquire()).await else { return Ok(None) };
            let mut conn = conn.map_err(database)?;
            // Never cancelled by the shutdown, only when the connection is dead.
            let batch = async {
                let more = self.batch(&mut conn, pass).await?;
                pass.cut_short = more && began.elapsed() >= PASS_MAX;
                if more && !pass.cut_short {
                    Ok(None)
                } else {
                    self.once.overdue(&mut conn, pass.deleted).await.map(Some)
                }
            };
            let Ok(ended) = tokio::time::timeout(BATCH_TIMEOUT, batch).await else {
                conn.close_on_drop();
                return Err(Error::new(ErrorKind::Connection, "a batch got no answer"));
            };
            if let Some(reaped) = ended? {
                return Ok(Some(reaped));
            }
            drop(conn);
            if before(shutdown, tokio::time::sleep(BATCH_PAUSE)).await.is_none() {
                return Ok(None);
            }
        }
    }

    /// One batch, after which the size of the next is set. Returns whether there may be more.
    async fn batch(&self, conn: &mut PgConnection, pass: &mut Pass) -> Result<bool> {
        let rows = pass.rows;
        let began = Instant::now();
        let deleted = self.once.reap_batch(conn, pass).await?;
        pass.rows = next_rows(rows, began.elapsed(), self.batch_budget);
        Ok(deleted >= rows)
    }
}

impl Pass {
    fn new(rows: u32) -> Self {
        Self { rows, watermark_micros: None, deleted: 0, cut_short: false }
    }
}

/// The size of the next batch, from the time the last one took.
fn next_rows(rows: u32, took: Duration, budget: Duration) -> u32 {
    let next = match took {
        took if took > budget => rows / 2,
        took if took < budget / 2 => rows * 2,
        _ => rows,
    };
    next.clamp(*BATCH_ROWS.start(), *BATCH_ROWS.end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_of_a_batch_follows_its_time() {
        let budget = Duration::from_millis(100);
        let ms = Duration::from_millis;
        assert_eq!(next_rows(1000, ms(101), budget), 500);
        assert_eq!(next_rows(1000, ms(49), budget), 2000);
        assert_eq!(next_rows(1000, ms(75), budget), 1000);
        assert_eq!(next_rows(100, ms(900), budget), 100);
        assert_eq!(next_rows(9000, ms(1), budget), 10_000);
    }
}
