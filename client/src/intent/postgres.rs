//! Intents in PostgreSQL.

use std::time::Duration;

use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;

use super::{Intent, IntentError, IntentStore, checked, checked_retention, new_key};

/// Intents in the table `pgonce_intent` of the caller's own database, for any number of processes.
#[derive(Debug, Clone)]
pub struct PgIntentStore {
    pool: PgPool,
    retention: Duration,
}

impl From<sqlx::Error> for IntentError {
    fn from(error: sqlx::Error) -> Self {
        Self::store(error)
    }
}

impl PgIntentStore {
    /// `retention`: how long the server remembers a key, less the longest time of a call.
    ///
    /// ```no_run
    /// # async fn example(pool: sqlx::PgPool) -> Result<(), pgonce_client::IntentError> {
    /// use std::time::Duration;
    /// let intents = pgonce_client::PgIntentStore::new(pool, Duration::from_secs(23 * 3600))?;
    /// intents.migrate().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Invalid`](IntentError::Invalid).
    pub fn new(pool: PgPool, retention: Duration) -> Result<Self, IntentError> {
        Ok(Self { pool, retention: checked_retention(retention)? })
    }

    /// Creates the table, if it is not there.
    ///
    /// # Errors
    /// [`Store`](IntentError::Store).
    ///
    /// # Cancel safety
    /// Cancel safe: the table is there or not.
    pub async fn migrate(&self) -> Result<(), IntentError> {
        let lock = "select pg_advisory_xact_lock(hashtextextended('pgonce_intent', 0))";
        let table = "create table if not exists pgonce_intent (
                       name text primary key,
                       key text not null,
                       begun_at timestamptz not null default clock_timestamp(),
                       finished boolean not null default false)";
        let open = "create index if not exists pgonce_intent_unknown on pgonce_intent (begun_at) where not finished";
        let mut tx = self.pool.begin().await?;
        for statement in [lock, table, open] {
            sqlx::query(statement).execute(&mut *tx).await?;
        }
        Ok(tx.commit().await?)
    }

    /// As [`begin`](IntentStore::begin), in the caller's transaction: the intent commits together with what it is about,
    /// such as the order. Send only after the commit.
    ///
    /// # Errors
    /// As `begin`.
    ///
    /// # Cancel safety
    /// As any statement: roll back.
    pub async fn begin_in(&self, tx: &mut PgConnection, name: &str) -> Result<Intent, IntentError> {
        checked(name)?;
        // The update changes nothing; it waits for another begin of the name, and returns its row. The age is by the
        // database's clock alone.
        let begin = "insert into pgonce_intent as i (name, key) values ($1, $2)
                     on conflict (name) do update set name = i.name
                     returning key, begun_at, extract(epoch from clock_timestamp() - begun_at)::float8";
        let begun = sqlx::query_as(begin).bind(name).bind(new_key()).fetch_one(tx).await?;
        let (key, begun_at, age): (String, OffsetDateTime, f64) = begun;
        let intent = Intent { name: name.to_owned(), key, begun_at: begun_at.into() };
        intent.aged(age, self.retention)
    }
}

impl IntentStore for PgIntentStore {
    async fn begin(&self, name: &str) -> Result<Intent, IntentError> {
        let mut tx = self.pool.begin().await?;
        sqlx::query("set local synchronous_commit = on").execute(&mut *tx).await?;
        let intent = self.begin_in(&mut tx, name).await;
        tx.commit().await?;
        intent
    }

    async fn finish(&self, intent: &Intent) -> Result<(), IntentError> {
        let finish = "update pgonce_intent set finished = true where name = $1 and key = $2";
        let finish = sqlx::query(finish).bind(&intent.name).bind(&intent.key);
        finish.execute(&self.pool).await?;
        Ok(())
    }

    async fn unknown(&self) -> Result<Vec<Intent>, IntentError> {
        let open =
            "select name, key, begun_at from pgonce_intent where not finished order by begun_at";
        let open: Vec<(String, String, OffsetDateTime)> =
            sqlx::query_as(open).fetch_all(&self.pool).await?;
        let intent = |(name, key, begun_at): (_, _, OffsetDateTime)| Intent {
            name,
            key,
            begun_at: begun_at.into(),
        };
        Ok(open.into_iter().map(intent).collect())
    }

    async fn forget(&self, intent: &Intent) -> Result<(), IntentError> {
        let delete = sqlx::query("delete from pgonce_intent where name = $1 and key = $2");
        delete.bind(&intent.name).bind(&intent.key).execute(&self.pool).await?;
        Ok(())
    }
}
