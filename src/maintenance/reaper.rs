//! Deletes keys past their retention.

use std::pin::{Pin, pin};
use std::time::{Duration, Instant};

use sqlx::{PgConnection, PgPool};

use crate::client::{PgOnce, get};
use crate::error::{Error, ErrorKind, Result, database, sqlstate_in};
use crate::leased::before::before;
use crate::operation::limits::{check_pause, outside};
use crate::protocol::procedure::{Unfit, is_unfit};
use crate::telemetry;

/// What a reaper has done, and what is left.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reaped {
    /// Keys deleted.
    pub deleted: u64,
    /// How long that took, including the pauses between batches.
    pub took: Duration,
    /// Whether something may be left: the one batch of [`PgOnce::reap_once`] was full, or a pass of [`Reaper::run_until`]
    /// used up its time. If pass after pass is cut short and `oldest_overdue` grows, the reaper does not keep up.
    pub cut_short: bool,
    /// Keys past their retention that still exist, counted up to 100,000.
    pub backlog: u64,
    /// How long the oldest of them has been overdue.
    pub oldest_overdue: Option<Duration>,
}

impl Reaped {
    /// How many keys were deleted per second, pauses included.
    #[must_use]
    pub fn keys_per_second(&self) -> u64 {
        let nanos = self.took.as_nanos().max(1);
        u64::try_from(u128::from(self.deleted) * 1_000_000_000 / nanos).unwrap_or(u64::MAX)
    }
}

/// Deletes keys past their retention, and old rows of the [history](crate::History), in the background.
///
/// A pass deletes batch after batch until nothing is overdue. The size of the batches follows their time. Any number of
/// reapers may run, in any number of processes. None touches a live lease, and correctness depends on none.
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
    share: f64,
}

const INTERVAL_DEFAULT: Duration = Duration::from_secs(60);
const BATCH_BUDGET_DEFAULT: Duration = Duration::from_millis(100);
const BATCH_ROWS_FIRST: u32 = 1000;
/// The largest batch that [`PgOnce::reap_once`] takes.
const BATCH_ROWS_MAX: u32 = 100_000;
const BATCH_ROWS: std::ops::RangeInclusive<u32> = 100..=10_000;
/// A batch that takes longer has met a dead connection.
const BATCH_TIMEOUT: Duration = Duration::from_secs(60);
const SHARE_DEFAULT: f64 = 0.9;
const SHARE_MIN: f64 = 0.01;
/// A pass that takes longer ends and reports; the next pass looks at skipped keys again. Not shorter: each pass begins
/// with the oldest key, and reads again what an old snapshot keeps of earlier passes.
const PASS_MAX: Duration = Duration::from_secs(60);
const BACKOFF_MAX: Duration = Duration::from_secs(60);

struct Pass {
    began: Instant,
    rows: u32,
    /// Where the next batch begins; see `sql/internal/reap_batch.sql`.
    watermark_micros: Option<i64>,
    deleted: u64,
    /// Whether the last batch was full: there may be more.
    more: bool,
    /// Before the next batch.
    pause: Duration,
}

impl PgOnce {
    /// Deletes one batch of up to `limit` keys past their retention (1 to 100,000), oldest first, and as many old rows of
    /// the [history](crate::History).
    ///
    /// Skips rows that others have locked, and never touches live leases. Repeat while `cut_short` is true, or use
    /// [`Reaper::pass`], which also remembers where the last batch ended.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) for a limit outside its range, or errors of the database.
    ///
    /// # Cancel safety
    /// Cancel safe: the batch is deleted as a whole or not at all.
    pub async fn reap_once(&self, conn: &mut PgConnection, limit: u32) -> Result<Reaped> {
        if limit == 0 || limit > BATCH_ROWS_MAX {
            let takes = format!("1 to {BATCH_ROWS_MAX}");
            return Err(outside("limit", &limit.to_string(), &takes));
        }
        let mut pass = Pass::new(limit);
        self.reap_batch(conn, &mut pass).await?;
        self.reaped(conn, &pass).await
    }

    async fn reap_batch(&self, conn: &mut PgConnection, pass: &mut Pass) -> Result<()> {
        let row = sqlx::query(self.statements.reap.clone())
            .bind(i32::try_from(pass.rows).unwrap_or(i32::MAX))
            .bind(pass.watermark_micros)
            .fetch_one(conn)
            .await
            .map_err(database)?;
        let deleted: i64 = get(&row, "deleted")?;
        pass.watermark_micros = get(&row, "watermark")?;
        pass.deleted += deleted.unsigned_abs();
        pass.more = get(&row, "more")?;
        Ok(())
    }

    async fn reaped(&self, conn: &mut PgConnection, pass: &Pass) -> Result<Reaped> {
        let took = pass.began.elapsed();
        let row = sqlx::query(self.statements.reap_backlog.clone())
            .fetch_one(conn)
            .await
            .map_err(database)?;
        let backlog: i64 = get(&row, "backlog")?;
        let oldest_ms: Option<i64> = get(&row, "oldest_ms")?;
        let reaped = Reaped {
            deleted: pass.deleted,
            took,
            cut_short: pass.more,
            backlog: backlog.unsigned_abs(),
            oldest_overdue: oldest_ms.map(|ms| Duration::from_millis(ms.unsigned_abs())),
        };
        telemetry::reaped(
            self.schema.as_str(),
            reaped.deleted,
            reaped.backlog,
            reaped.oldest_overdue.unwrap_or_default(),
        );
        Ok(reaped)
    }
}

impl Reaper {
    /// A reaper with a pass every minute, batches of about 100 ms, and short pauses between them.
    #[must_use]
    pub fn new(once: &PgOnce) -> Self {
        Self {
            once: once.clone(),
            interval: INTERVAL_DEFAULT,
            batch_budget: BATCH_BUDGET_DEFAULT,
            share: SHARE_DEFAULT,
        }
    }

    /// The time between two passes: 1 ms to one day. It varies by up to a tenth, and the first pass comes at a random
    /// moment within it, so that processes do not reap in step.
    ///
    /// A pass over a minute is cut short; the next one follows at once.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) outside these limits.
    pub fn interval(mut self, interval: Duration) -> Result<Self> {
        check_pause("interval", interval)?;
        self.interval = interval;
        Ok(self)
    }

    /// How long a batch should take. A batch that takes longer halves the next, one that takes less than half doubles
    /// it, between 100 and 10,000 keys.
    #[must_use]
    pub fn batch_budget(mut self, budget: Duration) -> Self {
        self.batch_budget = budget;
        self
    }

    /// The share of the time that deleting may take, kept by a pause after each batch: with 0.5, a batch of 100 ms is
    /// followed by a pause of 100 ms. 0.01 to 1 (no pause); default 0.9.
    ///
    /// It applies to each reaper: two that work at once take up to twice as much.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) outside these limits.
    pub fn share(mut self, share: f64) -> Result<Self> {
        if !(SHARE_MIN..=1.0).contains(&share) {
            return Err(outside("share", &share.to_string(), "0.01 to 1"));
        }
        self.share = share;
        Ok(self)
    }

    /// Deletes everything overdue, batch after batch, however long that takes. For cron jobs and tests. Each batch is
    /// its own transaction, unless the caller has one open.
    ///
    /// # Errors
    /// Errors of the database; earlier batches stay deleted.
    ///
    /// # Cancel safety
    /// Cancel safe: each batch is deleted as a whole or not at all.
    pub async fn pass(&self, conn: &mut PgConnection) -> Result<Reaped> {
        let mut pass = Pass::new(BATCH_ROWS_FIRST);
        self.batch(conn, &mut pass).await?;
        while pass.more {
            tokio::time::sleep(pass.pause).await;
            self.batch(conn, &mut pass).await?;
        }
        self.once.reaped(conn, &pass).await
    }

    /// Runs passes until `shutdown` completes; returns how many keys were deleted.
    ///
    /// Takes one connection per batch and gives it back in between. Logs errors and retries, with a growing pause of at
    /// most a minute. Finishes a batch that has begun.
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
                    pause = match reaped.cut_short {
                        true => pass.pause,
                        false => self.interval.mul_f64(0.9 + fastrand::f64() / 5.0),
                    };
                    tracing::info!(
                        deleted = reaped.deleted,
                        keys_per_second = reaped.keys_per_second(),
                        cut_short = reaped.cut_short,
                        backlog = reaped.backlog,
                        oldest_overdue_seconds =
                            reaped.oldest_overdue.unwrap_or_default().as_secs(),
                        "reaped"
                    );
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
        let mut unfit = Unfit::of(pool);
        loop {
            let Some(conn) = before(shutdown, pool.acquire()).await else { return Ok(None) };
            let mut conn = conn.map_err(database)?;
            // The shutdown never cancels a batch; only a dead connection does.
            let batch = async {
                self.batch(&mut conn, pass).await?;
                match pass.is_over(PASS_MAX) {
                    true => self.once.reaped(&mut conn, pass).await.map(Some),
                    false => Ok(None),
                }
            };
            let Ok(ended) = tokio::time::timeout(BATCH_TIMEOUT, batch).await else {
                conn.close_on_drop();
                return Err(Error::new(ErrorKind::Connection, "a batch got no answer"));
            };
            match ended {
                Ok(Some(reaped)) => return Ok(Some(reaped)),
                Ok(None) => drop(conn),
                Err(error) if is_unfit(&error) => {
                    conn.close_on_drop();
                    if unfit.takes_another(&error) {
                        continue;
                    }
                    return Err(error);
                }
                Err(error) => return Err(error),
            }
            if before(shutdown, tokio::time::sleep(pass.pause)).await.is_none() {
                return Ok(None);
            }
        }
    }

    /// One batch. Its time sets the size of the next batch and the pause before it.
    async fn batch(&self, conn: &mut PgConnection, pass: &mut Pass) -> Result<()> {
        let began = Instant::now();
        let rows = pass.rows;
        self.once.reap_batch(conn, pass).await?;
        let took = began.elapsed();
        pass.rows = next_rows(rows, took, self.batch_budget);
        pass.pause = pause_after(took, self.share);
        Ok(())
    }
}

impl Pass {
    fn new(rows: u32) -> Self {
        Self {
            began: Instant::now(),
            rows,
            watermark_micros: None,
            deleted: 0,
            more: false,
            pause: Duration::ZERO,
        }
    }

    /// Whether no keys are left, or no time.
    fn is_over(&self, time_max: Duration) -> bool {
        !self.more || self.began.elapsed() >= time_max
    }
}

fn next_rows(rows: u32, took: Duration, budget: Duration) -> u32 {
    let next = match took {
        took if took > budget => rows / 2,
        took if took < budget / 2 => rows * 2,
        _ => rows,
    };
    next.clamp(*BATCH_ROWS.start(), *BATCH_ROWS.end())
}

/// The pause after which batch and pause have taken this share.
fn pause_after(took: Duration, share: f64) -> Duration {
    took.mul_f64(1.0 / share - 1.0)
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

    #[test]
    fn a_pause_leaves_the_reaper_its_share() {
        let ms = Duration::from_millis;
        assert_eq!(pause_after(ms(100), 1.0), Duration::ZERO);
        assert_eq!(pause_after(ms(100), 0.5), ms(100));
        assert_eq!(pause_after(ms(10), 0.1), ms(90));
    }

    #[test]
    fn a_pass_is_over_when_nothing_is_left_or_its_time_is_up() {
        let pass = |more| Pass { more, ..Pass::new(1) };
        assert!(pass(false).is_over(PASS_MAX));
        assert!(!pass(true).is_over(PASS_MAX));
        assert!(pass(true).is_over(Duration::ZERO));
    }

    #[test]
    fn the_rate_counts_the_whole_pass() {
        let reaped =
            Reaped { deleted: 5000, took: Duration::from_millis(2500), ..Reaped::default() };
        assert_eq!(reaped.keys_per_second(), 2000);
        assert_eq!(Reaped::default().keys_per_second(), 0);
    }
}
