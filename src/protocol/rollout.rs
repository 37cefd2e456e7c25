//! Rollout modes and what comes of them, in the database.

use serde::Serialize;
use sqlx::PgConnection;
use sqlx::postgres::PgRow;
use time::OffsetDateTime;

use super::history::seconds;
use crate::client::{PgOnce, get};
use crate::error::{Error, ErrorKind, Result, database};
use crate::operation::class::Class;
use crate::protocol::record::{as_text, time};
use crate::rollout::{Rollout, RolloutMode};

/// A change of a class's rollout mode; see [`PgOnce::rollout_changes`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RolloutChange {
    /// The class.
    pub class: String,
    /// The mode it got; `None`: as its code says.
    pub mode: Option<RolloutMode>,
    /// When.
    #[serde(serialize_with = "as_text")]
    pub at: OffsetDateTime,
    /// The role that was logged in.
    pub role: String,
    /// Whom the application named, in the setting `pgonce.actor`.
    pub actor: Option<String>,
}

/// How far a class is with its keys; see [`PgOnce::adoption`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Adoption {
    /// The class.
    pub class: String,
    /// Its mode in the database.
    pub mode: Option<RolloutMode>,
    /// All calls.
    pub calls: u64,
    /// Calls with a key.
    pub keyed: u64,
    /// Duplicates that were prevented.
    pub duplicates: u64,
    /// Duplicates that would have been prevented, while protection was only observed.
    pub observed_duplicates: u64,
    /// What the prevented duplicates were worth, in the unit of the processes that recorded it.
    pub value: u64,
    /// What the observed duplicates were worth.
    pub observed_value: u64,
    /// Calls that were refused, because their key belongs to another request.
    pub mismatches: u64,
    /// Calls that would have been refused for that, while protection was only observed.
    pub observed_mismatches: u64,
    /// Keys that were looked at: up to 100 of each of up to 20 scopes.
    pub keys_seen: u64,
    /// How many of them are a number, or a word and a number: easy to guess.
    pub keys_guessable: u64,
}

impl PgOnce {
    /// Takes the rollout modes of its classes from here. Without it, and for a class without a mode, the code decides.
    ///
    /// ```
    /// use pgonce::{PgOnce, Rollout};
    /// let rollout = Rollout::new();
    /// let once = PgOnce::new().rollout(&rollout);
    /// ```
    #[must_use]
    pub fn rollout(mut self, rollout: &Rollout) -> Self {
        self.rollout = Some(rollout.clone());
        self
    }

    /// Sets the rollout mode of a class, for all processes that read it; `None`: as its code says. Adds a line, which says
    /// who and when: the role, and the setting `pgonce.actor`. To be called in a transaction, with whose commit it holds.
    ///
    /// Needs the right to execute `set_mode`.
    ///
    /// ```no_run
    /// # use pgonce::{Class, PgOnce, RolloutMode};
    /// # async fn example(pool: sqlx::PgPool, once: PgOnce) -> Result<(), Box<dyn std::error::Error>> {
    /// let class = Class::new("payments.create")?;
    /// let mut tx = pool.begin().await?;
    /// once.set_mode(&mut tx, &class, Some(RolloutMode::Observe)).await?;
    /// pgonce::commit(tx).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// What the database answers, such as a missing right. Roll back.
    ///
    /// # Cancel safety
    /// Dropped before it returns, the change may or may not be in the transaction: roll it back.
    pub async fn set_mode(
        &self,
        conn: &mut PgConnection,
        class: &Class,
        mode: Option<RolloutMode>,
    ) -> Result<()> {
        sqlx::query(self.statements.set_mode.clone())
            .bind(class.as_str())
            .bind(mode.map(RolloutMode::as_str))
            .execute(conn)
            .await
            .map(drop)
            .map_err(database)
    }

    /// The classes with a rollout mode in the database, each with its last change. Only reads.
    ///
    /// # Errors
    /// What the database answers.
    ///
    /// # Cancel safety
    /// Cancel safe: it only reads.
    pub async fn rollout_modes(&self, conn: &mut PgConnection) -> Result<Vec<RolloutChange>> {
        let rows = sqlx::query(self.statements.rollout_modes.clone()).fetch_all(conn).await;
        rows.map_err(database)?.iter().map(change).collect()
    }

    /// The last `limit` changes of a class's rollout mode (1 to 10,000), oldest first. Only reads.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) for a limit outside its range, or what the database answers.
    ///
    /// # Cancel safety
    /// Cancel safe: it only reads.
    pub async fn rollout_changes(
        &self,
        conn: &mut PgConnection,
        class: &Class,
        limit: u32,
    ) -> Result<Vec<RolloutChange>> {
        let rows = sqlx::query(self.statements.rollout_changes.clone())
            .bind(class.as_str())
            .bind(i32::try_from(limit).unwrap_or(i32::MAX))
            .fetch_all(conn)
            .await;
        rows.map_err(database)?.iter().map(change).collect()
    }

    /// How far each class is with its keys, from `from` on and before `until`, the busiest first. Counts only processes
    /// that keep a [`History`](crate::History).
    ///
    /// Only reads, and at most 2,000 keys of a class.
    ///
    /// ```no_run
    /// # async fn example(pool: sqlx::PgPool, once: pgonce::PgOnce) -> Result<(), Box<dyn std::error::Error>> {
    /// let until = time::OffsetDateTime::now_utc();
    /// for class in once.adoption(&mut *pool.acquire().await?, until - time::Duration::DAY, until).await? {
    ///     println!("{}: {} of {} calls have a key", class.class, class.keyed, class.calls);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// What the database answers.
    ///
    /// # Cancel safety
    /// Cancel safe: it only reads.
    pub async fn adoption(
        &self,
        conn: &mut PgConnection,
        from: OffsetDateTime,
        until: OffsetDateTime,
    ) -> Result<Vec<Adoption>> {
        let rows = sqlx::query(self.statements.adoption.clone())
            .bind(seconds(from))
            .bind(seconds(until))
            .fetch_all(conn)
            .await;
        rows.map_err(database)?.iter().map(adoption).collect()
    }
}

fn change(row: &PgRow) -> Result<RolloutChange> {
    Ok(RolloutChange {
        class: get(row, "class")?,
        mode: mode(row)?,
        at: time(row, "at")?,
        role: get(row, "role")?,
        actor: get(row, "actor")?,
    })
}

fn mode(row: &PgRow) -> Result<Option<RolloutMode>> {
    let name: Option<String> = get(row, "mode")?;
    let mode = name.map(|name| name.parse()).transpose();
    mode.map_err(|error: Error| error.of_kind(ErrorKind::Corrupt))
}

fn adoption(row: &PgRow) -> Result<Adoption> {
    let count = |column| get::<i64>(row, column).map(i64::unsigned_abs);
    Ok(Adoption {
        class: get(row, "class")?,
        mode: mode(row)?,
        calls: count("calls")?,
        keyed: count("keyed")?,
        duplicates: count("duplicates")?,
        observed_duplicates: count("observed_duplicates")?,
        value: count("value")?,
        observed_value: count("observed_value")?,
        mismatches: count("mismatches")?,
        observed_mismatches: count("observed_mismatches")?,
        keys_seen: count("keys_seen")?,
        keys_guessable: count("keys_guessable")?,
    })
}
