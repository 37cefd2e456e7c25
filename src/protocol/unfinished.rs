//! Unfinished keys, as operators see them.

use std::fmt;
use std::time::Duration;

use sqlx::PgConnection;
use sqlx::postgres::PgRow;
use time::OffsetDateTime;

use crate::client::{PgOnce, get};
use crate::error::{Result, database};
use crate::operation::key::Scope;
use crate::protocol::answer::HeldBecause;
use crate::protocol::record::{Listed, listed, time_if_any};

/// What an unfinished leased key, or a failed message, is waiting for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum UnfinishedState {
    /// Its holder, who is at work.
    Live,
    /// The next begin, a recovery or, if it is a message, its next delivery.
    Abandoned,
    /// An operator.
    Held,
    /// Nothing: its holder gave it back with nothing done.
    Free,
}

impl UnfinishedState {
    /// The word the SQL uses.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Abandoned => "abandoned",
            Self::Held => "held",
            Self::Free => "free",
        }
    }

    /// `None` for a word that this library does not know.
    pub(crate) fn of(word: &str) -> Option<Self> {
        [Self::Live, Self::Abandoned, Self::Held, Self::Free]
            .into_iter()
            .find(|state| state.as_str() == word)
    }
}

/// Which keys [`PgOnce::unfinished`] returns; the default is all that are not [free](UnfinishedState::Free).
#[derive(Debug, Clone, Default)]
pub struct UnfinishedFilter {
    /// Only keys of this scope.
    pub scope: Option<Scope>,
    /// Only keys in this state.
    pub state: Option<UnfinishedState>,
    /// Only what [may be a message](Unfinished::is_message), or only what may not.
    pub messages: Option<bool>,
}

/// An unfinished leased key, or a failed message. `Debug` shows no scope, no key and no error.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unfinished {
    /// Scope, key and record.
    pub listed: Listed,
    /// What it is waiting for.
    pub state: UnfinishedState,
    /// Why it is held.
    pub held_because: Option<HeldBecause>,
    /// Whether it may be a message: bound to no request, without steps, with a limit of attempts.
    pub is_message: bool,
    /// How many attempts count toward the limit.
    pub used: u32,
    /// The limit of attempts of its last begin.
    pub max_attempts: Option<u32>,
    /// How many steps are recorded.
    pub steps: u32,
    /// How often a recovery has picked it.
    pub tries: u32,
    /// When a recovery may pick it.
    pub try_at: Option<OffsetDateTime>,
    /// How its last failed attempt ended.
    pub last_error: Option<String>,
}

impl fmt::Debug for Unfinished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unfinished")
            .field("listed", &self.listed)
            .field("state", &self.state)
            .field("held_because", &self.held_because)
            .field("used", &self.used)
            .field("max_attempts", &self.max_attempts)
            .finish_non_exhaustive()
    }
}

impl PgOnce {
    /// Lists unfinished leased keys and failed messages with their states, up to `limit` (1 to 10,000): the claim that
    /// lapsed or lapses first comes first. Of more than 10,000 it looks at the first by scope and key. Reads no other
    /// keys; locks nothing.
    ///
    /// A key is *held* by the policy of its last begin. A begin with another policy can decide otherwise.
    ///
    /// ```no_run
    /// # use pgonce::{PgOnce, UnfinishedFilter, UnfinishedState};
    /// # async fn example(pool: sqlx::PgPool, once: PgOnce) -> Result<(), Box<dyn std::error::Error>> {
    /// let held = UnfinishedFilter { state: Some(UnfinishedState::Held), ..Default::default() };
    /// for found in once.unfinished(&mut *pool.acquire().await?, &held, 100).await? {
    ///     println!("{:?}, after {} attempts", found.held_because, found.used);
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
    pub async fn unfinished(
        &self,
        conn: &mut PgConnection,
        filter: &UnfinishedFilter,
        limit: u32,
    ) -> Result<Vec<Unfinished>> {
        let rows = sqlx::query(self.statements.unfinished_keys.clone())
            .bind(filter.scope.as_ref().map(Scope::as_str))
            .bind(filter.state.map(UnfinishedState::as_str))
            .bind(filter.messages)
            .bind(i32::try_from(limit).unwrap_or(i32::MAX))
            .fetch_all(conn)
            .await
            .map_err(database)?;
        rows.iter().map(unfinished).collect()
    }

    /// Lists the consumers that have unfinished messages. Looks at up to 10,000 unfinished keys, as
    /// [`unfinished`](PgOnce::unfinished) does; a consumer whose messages are all done is not listed.
    ///
    /// # Errors
    /// What the database answers.
    ///
    /// # Cancel safety
    /// Cancel safe: it only reads.
    pub async fn consumers(&self, conn: &mut PgConnection) -> Result<Vec<Consumer>> {
        let rows = sqlx::query(self.statements.consumers.clone())
            .fetch_all(conn)
            .await
            .map_err(database)?;
        let count = |row: &PgRow, column| get::<i64>(row, column).map(i64::unsigned_abs);
        let consumer = |row: &PgRow| {
            Ok(Consumer {
                name: get(row, "consumer")?,
                handled: count(row, "handled")?,
                waiting: count(row, "waiting")?,
                dead: count(row, "dead")?,
                longest_lapsed: get::<Option<i64>>(row, "longest_lapsed_ms")?
                    .map(|ms| Duration::from_millis(ms.unsigned_abs())),
            })
        };
        rows.iter().map(consumer).collect()
    }
}

/// A consumer with unfinished messages; see [`PgOnce::consumers`]. `Debug` does not show its name.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Consumer {
    /// Its name, which is the scope of its keys.
    pub name: String,
    /// Messages that are being handled again.
    pub handled: u64,
    /// Messages that failed and wait for their next delivery.
    pub waiting: u64,
    /// Messages that failed and have no attempts left.
    pub dead: u64,
    /// How long ago the first of them failed.
    pub longest_lapsed: Option<Duration>,
}

// By hand: logs have no scopes.
impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer")
            .field("handled", &self.handled)
            .field("waiting", &self.waiting)
            .field("dead", &self.dead)
            .field("longest_lapsed", &self.longest_lapsed)
            .finish_non_exhaustive()
    }
}

fn unfinished(row: &PgRow) -> Result<Unfinished> {
    let count = |column| get::<i32>(row, column).map(i32::unsigned_abs);
    Ok(Unfinished {
        listed: listed(row)?,
        state: UnfinishedState::of(get(row, "state")?).unwrap_or(UnfinishedState::Abandoned),
        held_because: held_because(row)?,
        is_message: get(row, "is_message")?,
        used: count("used")?,
        max_attempts: get::<Option<i32>>(row, "max_attempts")?.map(i32::unsigned_abs),
        steps: count("steps")?,
        tries: count("tries")?,
        try_at: time_if_any(row, "try_at")?,
        last_error: get(row, "last_error")?,
    })
}

pub(crate) fn held_because(row: &PgRow) -> Result<Option<HeldBecause>> {
    Ok(get::<Option<&str>>(row, "held_because")?.map(|because| match because {
        "lapsed" => HeldBecause::Lapsed,
        _ => HeldBecause::Attempts,
    }))
}
