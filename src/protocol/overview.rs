//! What an operator wants to know first: counts that cost little on a busy database.

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::client::{PgOnce, get};
use crate::error::{Result, database};
use crate::protocol::record::time_if_any;
use crate::protocol::schema::SchemaName;

/// What [`PgOnce::overview`] counts. Live, abandoned and held keys are leased ones: the claims of transactions that are
/// still open cannot be seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Overview {
    /// Keys whose holder is at work.
    pub live: u64,
    /// Keys that the next begin or a recovery continues.
    pub abandoned: u64,
    /// Keys that wait for an operator.
    pub held: u64,
    /// Messages that failed and wait for their next delivery.
    pub waiting_messages: u64,
    /// Messages that failed and have no attempts left.
    pub dead_messages: u64,
    /// Whether there are more unfinished keys than were counted.
    pub unfinished_capped: bool,
    /// The live keys by age: under a minute, ten minutes, an hour, a day, and older.
    pub live_by_age: [u64; 5],
    /// The age of the oldest live key.
    pub oldest_live: Option<Duration>,
    /// How long the longest abandoned key has been so; messages do not count.
    pub longest_abandoned: Option<Duration>,
    /// Keys past their retention that the reaper has not deleted, counted up to the given limit.
    pub overdue: u64,
    /// How long the oldest of them has been overdue.
    pub oldest_overdue: Option<Duration>,
    /// How many keys there are, by the server's statistics; `None` before the first vacuum.
    pub keys_estimate: Option<u64>,
    /// Size of the table of keys with its TOAST, in bytes.
    pub table_bytes: u64,
    /// Size of its indexes, in bytes.
    pub index_bytes: u64,
    /// Size of the recorded steps with their indexes, in bytes.
    pub steps_bytes: u64,
    /// Size of the list of unfinished keys with its indexes, in bytes.
    pub unfinished_bytes: u64,
    /// Dead rows of the table of keys, by the server's statistics.
    pub dead_rows: Option<u64>,
    /// When the table of keys was last vacuumed.
    pub vacuumed_at: Option<OffsetDateTime>,
}

/// A scope, and how much it has; see [`PgOnce::scopes`]. `Debug` does not show the scope.
#[derive(Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ScopeCounts {
    /// The scope.
    pub scope: String,
    /// Its keys; 1,001 if there are more than 1,000.
    pub keys: u64,
    /// Its unfinished leased keys and failed messages; 1,001 if there are more than 1,000.
    pub unfinished: u64,
}

// By hand: logs have no scopes.
impl fmt::Debug for ScopeCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScopeCounts")
            .field("keys", &self.keys)
            .field("unfinished", &self.unfinished)
            .finish_non_exhaustive()
    }
}

impl PgOnce {
    /// Counts unfinished and overdue keys, up to `count_max` of each (1 to 100,000), and reports sizes. Does not read
    /// the table of keys: for a database at work use this, not [`stats`](PgOnce::stats). Locks nothing.
    ///
    /// ```no_run
    /// # async fn example(pool: sqlx::PgPool, once: pgonce::PgOnce) -> Result<(), Box<dyn std::error::Error>> {
    /// let overview = once.overview(&mut *pool.acquire().await?, 10_000).await?;
    /// println!("{} keys wait for an operator", overview.held);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for a count outside its range, or what the database answers.
    ///
    /// # Cancel safety
    /// Cancel safe: it only reads.
    pub async fn overview(&self, conn: &mut PgConnection, count_max: u32) -> Result<Overview> {
        let row = sqlx::query(self.statements.overview.clone())
            .bind(i32::try_from(count_max).unwrap_or(i32::MAX))
            .fetch_one(conn)
            .await
            .map_err(database)?;
        let count = |column| get::<i64>(&row, column).map(i64::unsigned_abs);
        let perhaps = |column| get::<Option<i64>>(&row, column).map(|n| n.map(i64::unsigned_abs));
        let lasting = |column| perhaps(column).map(|ms| ms.map(Duration::from_millis));
        let ages: Vec<i64> = get(&row, "live_by_age")?;
        let mut live_by_age = [0; 5];
        for (place, count) in live_by_age.iter_mut().zip(ages) {
            *place = count.unsigned_abs();
        }
        Ok(Overview {
            live: count("live")?,
            abandoned: count("abandoned")?,
            held: count("held")?,
            waiting_messages: count("waiting_messages")?,
            dead_messages: count("dead_messages")?,
            unfinished_capped: get(&row, "unfinished_capped")?,
            live_by_age,
            oldest_live: lasting("oldest_live_ms")?,
            longest_abandoned: lasting("longest_abandoned_ms")?,
            overdue: count("overdue")?,
            oldest_overdue: lasting("oldest_overdue_ms")?,
            keys_estimate: perhaps("keys_estimate")?,
            table_bytes: count("table_bytes")?,
            index_bytes: count("index_bytes")?,
            steps_bytes: count("steps_bytes")?,
            unfinished_bytes: count("unfinished_bytes")?,
            dead_rows: perhaps("dead_rows")?,
            vacuumed_at: time_if_any(&row, "vacuumed_at")?,
        })
    }

    /// Lists scopes in order: those after `after` that begin with `prefix`, up to `limit` (1 to 1000), with counts that
    /// stop at 1,001. Jumps from scope to scope, so that it does not read all keys. Locks nothing.
    ///
    /// # Errors
    /// As [`overview`](PgOnce::overview).
    ///
    /// # Cancel safety
    /// Cancel safe: it only reads.
    pub async fn scopes(
        &self,
        conn: &mut PgConnection,
        prefix: Option<&str>,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<ScopeCounts>> {
        let rows = sqlx::query(self.statements.scopes.clone())
            .bind(prefix)
            .bind(after)
            .bind(i32::try_from(limit).unwrap_or(i32::MAX))
            .fetch_all(conn)
            .await
            .map_err(database)?;
        let counts = |row| {
            Ok(ScopeCounts {
                scope: get(row, "scope")?,
                keys: get::<i64>(row, "key_count")?.unsigned_abs(),
                unfinished: get::<i64>(row, "unfinished_count")?.unsigned_abs(),
            })
        };
        rows.iter().map(counts).collect()
    }

    /// Whether this session can write: `false` on a standby and in a read-only transaction.
    ///
    /// # Errors
    /// What the database answers.
    ///
    /// # Cancel safety
    /// Cancel safe: it only reads.
    pub async fn takes_writes(&self, conn: &mut PgConnection) -> Result<bool> {
        sqlx::query_scalar(self.statements.takes_writes.clone())
            .fetch_one(conn)
            .await
            .map_err(database)
    }

    /// The schema that this client uses.
    ///
    /// ```
    /// assert_eq!(pgonce::PgOnce::new().schema_name().as_str(), "pgonce");
    /// ```
    #[must_use]
    pub fn schema_name(&self) -> &SchemaName {
        &self.schema
    }
}
