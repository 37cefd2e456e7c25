//! A clock that a test can move.

use std::time::Duration;

use sqlx::{AssertSqlSafe, PgConnection, PgPool};

/// The time that pgonce sees in a test's database. A test moves it forward instead of waiting: for a key to be
/// forgotten, a lease to lapse, a row to be due for the reaper.
///
/// All of pgonce's rules read the time from two SQL functions in pgonce's schema, `_clock` and `_transaction_start`.
/// `Clock` replaces both by versions that add an offset. So all sessions of this database see the new time at once,
/// whether they call pgonce from Rust, SQL or a service. Nothing else moves: `now()` in your own statements, the bounds
/// of waits, and timers in a process, such as those of the [`Reaper`] and of lease renewal, keep the real time.
///
/// ```no_run
/// use std::time::Duration;
/// use pgonce_testing::Clock;
///
/// # async fn example(pool: sqlx::PgPool) -> sqlx::Result<()> {
/// let mut clock = Clock::install(&pool, "pgonce").await?;
/// // Begin a key, then:
/// clock.advance(Duration::from_secs(24 * 60 * 60)).await?;
/// // The key is forgotten.
/// # Ok(())
/// # }
/// ```
///
/// [`Reaper`]: https://docs.rs/pgonce/latest/pgonce/struct.Reaper.html
#[derive(Debug)]
pub struct Clock {
    pool: PgPool,
    schema: String,
    ahead: Duration,
}

impl Clock {
    /// Replaces the clock of pgonce's schema, after `migrate`; the schema's usual name is `pgonce`. It shows the real
    /// time. Use one `Clock` per database, and only in a database for tests: pgonce's `migrate` does not undo it.
    ///
    /// # Errors
    /// What the database answers: if pgonce is not installed in this schema, or if the role does not own its functions.
    ///
    /// # Cancel safety
    /// Cancel safe: call it again.
    pub async fn install(pool: &PgPool, schema: &str) -> sqlx::Result<Self> {
        let clock = Self { pool: pool.clone(), schema: schema.to_owned(), ahead: Duration::ZERO };
        let mut conn = clock.pool.acquire().await?;
        // Otherwise the functions would be created where no pgonce is.
        let exists = "select pg_catalog.count(pg_catalog.to_regprocedure(
                        pg_catalog.format('%I._clock()', $1))::oid::bigint)";
        let exists: i64 = sqlx::query_scalar(exists).bind(schema).fetch_one(&mut *conn).await?;
        if exists == 0 {
            return Err(sqlx::Error::Configuration(
                format!("pgonce is not installed in the schema {schema}").into(),
            ));
        }
        clock.set(&mut conn, Duration::ZERO).await?;
        drop(conn);
        Ok(clock)
    }

    /// Moves the clock forward. All transactions see it from their next statement on.
    ///
    /// # Errors
    /// What the database answers; then the clock is where it was.
    ///
    /// # Cancel safety
    /// Dropped, the clock may have moved or not. The next `advance` counts from where it was.
    pub async fn advance(&mut self, by: Duration) -> sqlx::Result<()> {
        let ahead = self.ahead.saturating_add(by);
        let mut conn = self.pool.acquire().await?;
        self.set(&mut conn, ahead).await?;
        self.ahead = ahead;
        Ok(())
    }

    /// How far the clock is ahead of the real time.
    #[must_use]
    pub fn ahead(&self) -> Duration {
        self.ahead
    }

    /// The offset is in the functions' text: plans that contain the functions are made again, in every session.
    async fn set(&self, conn: &mut PgConnection, ahead: Duration) -> sqlx::Result<()> {
        let schema = self.schema.replace('"', "\"\"");
        let ahead = ahead.as_micros();
        let replace = format!(
            r#"begin;
               create or replace function "{schema}"._clock() returns timestamptz
               language sql volatile parallel safe
               return pg_catalog.clock_timestamp() + {ahead} * interval '1 microsecond';
               create or replace function "{schema}"._transaction_start() returns timestamptz
               language sql stable parallel safe
               return pg_catalog.now() + {ahead} * interval '1 microsecond';
               commit"#
        );
        sqlx::raw_sql(AssertSqlSafe(replace)).execute(conn).await.map(drop)
    }
}
