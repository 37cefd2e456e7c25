//! Runs abandoned work again, without waiting for its client.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::time::Duration;

use sqlx::{PgConnection, PgPool};
use tokio::task::{Id, JoinSet};

use crate::client::{PgOnce, get};
use crate::error::{Error, ErrorKind, Result, database, redacted};
use crate::leased::before::before;
use crate::operation::key::checked;
use crate::operation::limits::{SHORTEST, check_pause, check_pauses, outside, spelled};
use crate::operation::millis;
use crate::protocol::procedure;
use crate::protocol::record::{Listed, listed};
use crate::telemetry::recovered;
use crate::transactional::OwnedTransaction;
use crate::transactional::{BoxError, jitter};

/// Runs abandoned operations again in the background: leased ones whose holder died, failed, or gave them back.
///
/// A recovery looks all the time, picks as many operations as it may run at once, and calls a handler for each. The
/// handler does what the first caller did: it builds the operation from scope and key, and calls
/// [`run_leased`](PgOnce::run_leased). Any number of recoveries may run, in any number of processes. They pick
/// different keys; if two meet on a key, begin decides as for any two callers.
///
/// A picked key is postponed: if still abandoned, it is picked again after a pause that doubles with each try. So a key
/// that always fails leaves room for others. Keys due longest come first.
///
/// ```no_run
/// # use pgonce::{Failure, Lease, Listed, Operation, PgOnce, Recovery, RunError, Work};
/// # async fn checkout(once: &PgOnce, pool: &sqlx::PgPool, scope: &str, order: &str) -> Result<(), RunError<Failure>> { Ok(()) }
/// # async fn example(pool: sqlx::PgPool, once: PgOnce) -> Result<(), Box<dyn std::error::Error>> {
/// let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
/// let recovery = Recovery::new(&once, "%/orders.checkout")?;
/// let task = tokio::spawn(async move {
///     let handler = |found: Listed| {
///         let (once, pool) = (once.clone(), pool.clone());
///         async move { checkout(&once, &pool, &found.scope, &found.key).await }
///     };
///     recovery.run_until(pool.clone(), handler, stopped).await
/// });
/// // at shutdown
/// drop(stop);
/// let recovered = task.await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Recovery {
    once: PgOnce,
    scopes: String,
    concurrency: usize,
    interval: Duration,
    first_pause: Duration,
    longest_pause: Duration,
    time_limit: Duration,
}

const CONCURRENCY_DEFAULT: usize = 4;
const CONCURRENCY_MAX: usize = 1000;
const INTERVAL_DEFAULT: Duration = Duration::from_millis(500);
const FIRST_PAUSE_DEFAULT: Duration = Duration::from_secs(5);
const LONGEST_PAUSE_DEFAULT: Duration = Duration::from_secs(3600);
const TIME_LIMIT_DEFAULT: Duration = Duration::from_secs(3600);
/// A look that takes longer has met a dead connection.
const LOOK_MAX: Duration = Duration::from_secs(60);
/// The longest pause after a failed look.
const BACKOFF_MAX: Duration = Duration::from_secs(60);

impl PgOnce {
    /// Leased operations without a live holder, within their retention: the holder died, failed, or gave them back. The
    /// claim that lapsed first comes first. Includes held keys: the policy that holds a key comes with each begin.
    ///
    /// Reads only unfinished keys; locks nothing.
    ///
    /// ```no_run
    /// # async fn example(pool: sqlx::PgPool, once: pgonce::PgOnce) -> Result<(), Box<dyn std::error::Error>> {
    /// for found in once.abandoned(&mut *pool.acquire().await?, 100).await? {
    ///     println!("attempt {} lapsed at {}", found.record.attempt, found.record.lease_expires_at);
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
    pub async fn abandoned(&self, conn: &mut PgConnection, limit: u32) -> Result<Vec<Listed>> {
        let rows = sqlx::query(self.statements.abandoned.clone())
            .bind(i64::from(limit))
            .fetch_all(conn)
            .await
            .map_err(database)?;
        rows.iter().map(listed).collect()
    }
}

impl Recovery {
    /// Recovers operations whose scope matches this pattern: `%` stands for any characters, `_` for any one, `\` makes
    /// the next one literal. Match only scopes that the handler of [`run_until`](Recovery::run_until) can run: a picked
    /// key is postponed even if it is not run.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) for a pattern that is empty, blank, longer than 255 bytes, has control
    /// characters, or ends with a `\` that makes nothing literal.
    pub fn new(once: &PgOnce, scopes: &str) -> Result<Self> {
        checked("scopes", scopes.to_owned())?;
        let backslashes = scopes.bytes().rev().take_while(|byte| *byte == b'\\').count();
        if backslashes % 2 == 1 {
            return Err(Error::invalid("scopes ends with a backslash that makes nothing literal"));
        }
        Ok(Self {
            once: once.clone(),
            scopes: scopes.to_owned(),
            concurrency: CONCURRENCY_DEFAULT,
            interval: INTERVAL_DEFAULT,
            first_pause: FIRST_PAUSE_DEFAULT,
            longest_pause: LONGEST_PAUSE_DEFAULT,
            time_limit: TIME_LIMIT_DEFAULT,
        })
    }

    /// How many operations run at once: 1 to 1000; default 4.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) outside these limits.
    pub fn concurrency(mut self, operations: usize) -> Result<Self> {
        if !(1..=CONCURRENCY_MAX).contains(&operations) {
            return Err(outside("concurrency", &operations.to_string(), "1 to 1000"));
        }
        self.concurrency = operations;
        Ok(self)
    }

    /// The longest time between two looks while there is room for another operation: 1 ms to one day; default half a
    /// second. Each is up to a tenth shorter, so that processes do not look in step.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) outside these limits.
    pub fn interval(mut self, interval: Duration) -> Result<Self> {
        check_pause("interval", interval)?;
        self.interval = interval;
        Ok(self)
    }

    /// How long a picked key is postponed: the first pause and the longest; the pause doubles with each try. Default:
    /// five seconds and one hour. 1 ms to one day; the first is not above the longest.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) outside these limits.
    pub fn pauses(mut self, first: Duration, longest: Duration) -> Result<Self> {
        check_pauses(first, longest)?;
        (self.first_pause, self.longest_pause) = (first, longest);
        Ok(self)
    }

    /// How long a handler may take: 1 ms or more; default one hour. Then it is dropped, and its claim lapses: work that
    /// hangs must not block a place.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) below this limit.
    pub fn time_limit(mut self, limit: Duration) -> Result<Self> {
        if limit < SHORTEST {
            return Err(outside("time limit", &spelled(limit), "1 ms or more"));
        }
        self.time_limit = limit;
        Ok(self)
    }

    /// Runs abandoned operations until `shutdown` completes; returns how many handlers succeeded.
    ///
    /// Each call of `handler` has its own task; a panic ends only that task. Logs show errors without their text, and a
    /// hash in place of the key. Takes a connection for each look and gives it back; handlers take their own.
    ///
    /// After `shutdown` it picks no more, and waits for running handlers. To limit that wait, drop the future.
    ///
    /// # Cancel safety
    /// Cancel safe: if dropped, the handlers are dropped at their next await, as in a crash. Their claims lapse with
    /// their leases, and another process continues them.
    pub async fn run_until<F, Fut, T, E>(
        &self,
        pool: PgPool,
        handler: F,
        shutdown: impl Future,
    ) -> u64
    where
        F: Fn(Listed) -> Fut,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let mut shutdown = pin!(shutdown);
        let mut running = Running::default();
        let mut failures = 0_u32;
        loop {
            let free = self.concurrency - running.tasks.len();
            let Some(picked) = before(&mut shutdown, self.pick(&pool, free)).await else { break };
            let mut pause = jitter(self.interval / 5) + self.interval * 4 / 5;
            match picked {
                Ok(picked) => {
                    failures = 0;
                    for found in picked {
                        let key = self.once.telemetry.hash(&found.scope, &found.key);
                        // The call of the handler may panic too, not only its future.
                        match catch_unwind(AssertUnwindSafe(|| handler(found))) {
                            Ok(work) => {
                                let work = async move { work.await.map(drop).map_err(Into::into) };
                                running.start(key, tokio::time::timeout(self.time_limit, work));
                            }
                            Err(_) => warn(&key, PANICKED),
                        }
                    }
                }
                // Another recovery looked at the same moment.
                Err(error) if error.kind() == ErrorKind::Contention => {}
                Err(error) => {
                    failures += 1;
                    pause = jitter(Duration::from_secs(1 << failures.min(6)).min(BACKOFF_MAX));
                    tracing::warn!(kind = ?error.kind(), sqlstate = error.sqlstate(), "cannot look for abandoned work");
                }
            }
            let full = running.tasks.len() >= self.concurrency;
            if before(&mut shutdown, running.next(pause, full)).await.is_none() {
                break;
            }
        }
        while !running.tasks.is_empty() {
            running.one().await;
        }
        running.well
    }
}

impl Recovery {
    /// Picks as many keys as may run, and postpones them.
    async fn pick(&self, pool: &PgPool, free: usize) -> Result<Vec<Listed>> {
        if free == 0 {
            return Ok(Vec::new());
        }
        let picking = async {
            let row = procedure::ask(pool, procedure::ANSWER_MAX, || {
                sqlx::query(self.once.statements.pick_abandoned.clone())
                    .bind(&self.scopes)
                    .bind(i32::try_from(free).unwrap_or(i32::MAX))
                    .bind(millis(self.first_pause))
                    .bind(millis(self.longest_pause))
            })
            .await?;
            let picked: (Vec<String>, Vec<String>) = (get(&row, "scopes")?, get(&row, "keys")?);
            if picked.0.is_empty() {
                return Ok(Vec::new());
            }
            let rows = OwnedTransaction::look(pool, || {
                sqlx::query(self.once.statements.picked.clone()).bind(&picked.0).bind(&picked.1)
            });
            rows.await?.iter().map(listed).collect()
        };
        // A dropped call closes its connection.
        tokio::time::timeout(LOOK_MAX, picking)
            .await
            .unwrap_or_else(|_| Err(Error::new(ErrorKind::Connection, "a look got no answer")))
    }
}

/// The running handlers, each in its own task.
#[derive(Default)]
struct Running {
    tasks: JoinSet<Handled>,
    /// What logs may show of their keys.
    keys: HashMap<Id, String>,
    /// How many succeeded.
    well: u64,
}

/// How a handler ended, or that its time was over.
type Handled = Result<Result<(), BoxError>, tokio::time::error::Elapsed>;

impl Running {
    fn start(&mut self, key: String, handler: impl Future<Output = Handled> + Send + 'static) {
        let id = self.tasks.spawn(handler).id();
        self.keys.insert(id, key);
    }

    /// Waits until a handler ends, or for `pause` if there is room for another one.
    async fn next(&mut self, pause: Duration, full: bool) {
        let mut pause = pin!(tokio::time::sleep(pause));
        if full {
            self.one().await;
        } else if self.tasks.is_empty() {
            pause.await;
        } else {
            before(&mut pause, self.one()).await;
        }
    }

    /// Waits until a handler ends, and logs how.
    async fn one(&mut self) {
        let ended = self.tasks.join_next_with_id().await;
        let (id, problem) = match ended {
            None => return,
            Some(Ok((id, Ok(Ok(()))))) => (id, None),
            Some(Ok((id, Ok(Err(error))))) => (id, Some(redacted(error.as_ref()))),
            Some(Ok((id, Err(_)))) => (id, Some("it took longer than the time limit".to_owned())),
            Some(Err(error)) => (error.id(), Some(PANICKED.to_owned())),
        };
        let key = self.keys.remove(&id).unwrap_or_default();
        match problem {
            None => {
                self.well += 1;
                recovered("done");
                tracing::info!(key, "abandoned work was run again");
            }
            Some(problem) => warn(&key, &problem),
        }
    }
}

const PANICKED: &str = "its handler panicked";

fn warn(key: &str, problem: &str) {
    recovered("failed");
    tracing::warn!(key, problem, "abandoned work was not run to its end");
}
