//! Handling a message from begin to commit, and what to tell the broker.

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use super::{FAILED, Inbox, USED_UP, reason};
use crate::answer::InProgress;
use crate::error::{Error, ErrorKind, Result, database};
use crate::once::get;
use crate::operation::{Operation, millis};
use crate::run::{Done, Failure, RunError, jitter};
use crate::run_leased::redacted;

/// What a delivery says about its message.
// No Debug: it would show the id.
#[allow(missing_debug_implementations)]
#[derive(Clone)]
pub struct Message {
    id: String,
    redelivered: Option<bool>,
}

impl Message {
    /// A message with this id: the broker's, or one from its content that says better what must happen once
    /// (an order's number survives a publisher that sends twice). 1 to 255 bytes, as a [`Key`]; a message
    /// with another one is a [`DeadLetter`](Verdict::DeadLetter), never one that is handled unprotected.
    pub fn new(id: impl Into<String>) -> Self {
        Self { id: id.into(), redelivered: None }
    }

    /// Whether the broker says that it has delivered this message before. What it has is counted as an
    /// attempt before it is handled, in a commit of its own, because it may have killed its consumer. What it
    /// has not needs no such commit; unless it is said, it is counted.
    #[must_use]
    pub fn redelivered(mut self, redelivered: bool) -> Self {
        self.redelivered = Some(redelivered);
        self
    }
}

/// What became of a message.
#[derive(Debug)]
#[non_exhaustive]
pub struct Handled<T> {
    /// What to tell the broker.
    pub verdict: Verdict,
    /// What the work returned, now or [in an earlier delivery](Done::is_replay), or why there is nothing.
    pub result: Result<Done<T>, RunError>,
}

/// What to tell the broker about a message.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// It is done, and committed.
    Ack,
    /// It is not done: deliver it again, after this time.
    Retry(Duration),
    /// It will not be done: put it where people look. The reason says nothing of what it was about.
    DeadLetter(String),
}

/// What count_attempt says.
enum Counted {
    /// How many attempts count against the cap now; the token is for saying how this one ends.
    Attempt { used: u32, token: Uuid },
    /// The attempts are used up; why, in words.
    Dead(String),
    /// It is done.
    Done,
    /// Another consumer is at it.
    Elsewhere,
}

impl Inbox {
    /// Handles a message once: begins, runs `work`, completes with its value and commits, as
    /// [`PgOnce::run`](crate::PgOnce::run) does, and says what to tell the broker. Tell it after this has returned:
    /// what is acknowledged is committed.
    ///
    /// | what happens | verdict |
    /// |---|---|
    /// | `work` returns a value, and its transaction is committed | `Ack` |
    /// | the message is done already | `Ack`; `work` does not run |
    /// | another consumer handles it, and the wait is over | `Retry` |
    /// | `work` fails: everything is rolled back, and the attempt is counted in a commit of its own | `Retry`, or `DeadLetter` when the attempts are used up |
    /// | `work` returns [`Failure::keep`] | `DeadLetter`, now and whenever it comes again |
    /// | the database is away, or COMMIT got no answer | `Retry`; not counted, because it is not the message's fault |
    /// | the id is none | `DeadLetter` |
    ///
    /// ```no_run
    /// # use pgonce::{Inbox, Message, Verdict};
    /// # async fn example(pool: sqlx::PgPool, inbox: Inbox) {
    /// let message = Message::new("message-17").redelivered(false);
    /// let handled = inbox.handle(&pool, &message, async |tx| {
    ///     sqlx::query("insert into orders default values").execute(tx).await.map(drop)
    /// });
    /// match handled.await.verdict {
    ///     Verdict::Ack => println!("acknowledge it"),
    ///     Verdict::Retry(after) => println!("again in {after:?}"),
    ///     Verdict::DeadLetter(reason) => println!("put it aside: {reason}"),
    ///     _ => {}
    /// }
    /// # }
    /// ```
    ///
    /// # Cancel safety
    /// Cancel safe: dropped at any point, the message is handled whole or not at all. Do not acknowledge it.
    pub async fn handle<T, E, F>(&self, pool: &PgPool, message: &Message, work: F) -> Handled<T>
    where
        T: Serialize + DeserializeOwned,
        E: Into<Failure>,
        F: AsyncFnOnce(&mut PgConnection) -> Result<T, E> + Clone,
    {
        let mut op = match self.operation(&message.id) {
            Ok(op) => op,
            Err(error) => {
                let verdict = Verdict::DeadLetter(error.to_string());
                return Handled { verdict, result: Err(error.into()) };
            }
        };
        let mut counted = Counted::Elsewhere;
        if message.redelivered != Some(false) {
            let count = async {
                let mut conn = pool.acquire().await.map_err(database)?;
                self.count(&mut conn, &op, None).await
            };
            counted = match count.await {
                Ok(counted) => counted,
                Err(error) => return Handled { verdict: self.retry(1), result: Err(error.into()) },
            };
            match counted {
                Counted::Attempt { .. } => op.max_attempts = None, // there is one more: this one
                // Not run uncounted, should it come free now.
                Counted::Elsewhere => {
                    let busy = InProgress { lease_remaining: None };
                    let verdict = Verdict::Retry(busy.retry_after());
                    return Handled { verdict, result: Err(RunError::InProgress(busy)) };
                }
                Counted::Done | Counted::Dead(_) => {} // which `run` says better
            }
        }
        let result = self.once.run(pool, &op, work).await;
        let verdict = self.verdict(pool, &op, counted, &result).await;
        Handled { verdict, result }
    }

    /// Says that the work of a message that was [received](Inbox::receive) has failed, after its transaction was
    /// rolled back: counts the attempt in a commit of its own, unless a transaction is open on `conn`. `error` is
    /// kept for people (1000 characters); say nothing in it of what the message was about.
    ///
    /// # Errors
    /// As [`begin`](crate::PgOnce::begin).
    ///
    /// # Cancel safety
    /// Dropped before it returns, the attempt may or may not be counted.
    pub async fn failed(&self, conn: &mut PgConnection, id: &str, error: &str) -> Result<Verdict> {
        let op = self.operation(id)?;
        let counted = self.count(conn, &op, Some(error)).await?;
        Ok(self.after(counted, error))
    }

    /// What to tell the broker, after the attempt was counted if it must be.
    async fn verdict<T>(
        &self,
        pool: &PgPool,
        op: &Operation,
        counted: Counted,
        result: &Result<Done<T>, RunError>,
    ) -> Verdict {
        let problem = match result {
            Ok(_) | Err(RunError::Omitted(_)) => return Verdict::Ack,
            Err(RunError::InProgress(wait)) => return Verdict::Retry(wait.retry_after()),
            Err(RunError::Failed { .. }) => return Verdict::DeadLetter(FAILED.to_owned()),
            Err(RunError::Protocol(error)) if error.kind() == ErrorKind::Corrupt => {
                return Verdict::DeadLetter(error.to_string());
            }
            Err(RunError::Protocol(error)) if is_elsewhere(error) => return self.retry(1),
            Err(RunError::Work(error)) => redacted(error),
            Err(RunError::Protocol(error)) => error.to_string(),
            Err(answer) => answer.to_string(),
        };
        let told = async {
            let mut conn = pool.acquire().await.map_err(database)?;
            let counted = match counted {
                Counted::Attempt { token, used } => {
                    let mut claim = self.once.claim(&self.consumer, op.key(), token, used);
                    claim.settled = true; // it has lapsed
                    claim.id().note(&mut conn, None, Some(&problem), true).await.map(|()| counted)
                }
                _ => self.count(&mut conn, op, Some(&problem)).await,
            };
            counted.map(|counted| self.after(counted, &problem))
        };
        told.await.unwrap_or_else(|_| self.retry(1))
    }

    async fn count(
        &self,
        conn: &mut PgConnection,
        op: &Operation,
        error: Option<&str>,
    ) -> Result<Counted> {
        let row = sqlx::query(self.once.statements.count_attempt.clone())
            .bind(self.consumer.as_str())
            .bind(op.key().as_str())
            .bind(millis(self.retention))
            .bind(millis(self.wait))
            .bind(self.cap())
            .bind(error)
            .fetch_one(conn)
            .await
            .map_err(database)?;
        Ok(match get::<&str>(&row, "answer")? {
            "started" => Counted::Attempt {
                used: get::<i32>(&row, "used")?.unsigned_abs(),
                token: get(&row, "token")?,
            },
            "held" => Counted::Dead(reason(get(&row, "last_error")?, USED_UP)),
            "failed" => Counted::Dead(reason(get(&row, "last_error")?, FAILED)),
            "completed" => Counted::Done,
            _ => Counted::Elsewhere,
        })
    }

    /// What to tell the broker after an attempt has failed.
    fn after(&self, counted: Counted, problem: &str) -> Verdict {
        match counted {
            Counted::Attempt { used, .. } if used >= self.max_attempts => {
                Verdict::DeadLetter(problem.to_owned())
            }
            Counted::Attempt { used, .. } => self.retry(used),
            Counted::Dead(reason) => Verdict::DeadLetter(reason),
            Counted::Done => Verdict::Ack,
            Counted::Elsewhere => self.retry(1),
        }
    }

    /// The pause after so many attempts.
    fn retry(&self, attempts: u32) -> Verdict {
        let doubled = self.first_pause.saturating_mul(1 << (attempts - 1).min(30));
        Verdict::Retry(jitter(doubled.min(self.longest_pause)))
    }
}

/// Whether the failure has nothing to do with this message: it would only be counted against it.
fn is_elsewhere(error: &Error) -> bool {
    let kind = error.kind();
    let deployment = matches!(
        kind,
        ErrorKind::SchemaOutdated | ErrorKind::SchemaTooNew | ErrorKind::InvalidInput
    );
    deployment || error.is_retryable()
}
