//! Handles a message from begin to commit, and says what to tell the broker.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, PgPool};

use super::{FAILED, Inbox, USED_UP, reason};
use crate::client::get;
use crate::error::{Error, ErrorKind, Result};
use crate::leased::work::Work;
use crate::operation::{Operation, millis};
use crate::protocol::procedure;
use crate::telemetry::Event;
use crate::transactional::OwnedTransaction;
use crate::transactional::{Done, Ending, Restarts, RunError, WorkError, jitter};

/// What a delivery says about its message.
// No Debug: it would show the id.
#[allow(missing_debug_implementations)]
#[derive(Clone)]
pub struct Message {
    id: String,
    redelivered: Option<bool>,
}

impl Message {
    /// A message with this id: the broker's, or one from the content (an order's number survives a publisher that sends
    /// twice). 1 to 255 bytes, as a [`Key`](crate::Key). A message with an invalid id is a
    /// [`DeadLetter`](Verdict::DeadLetter), and is never handled unprotected.
    pub fn new(id: impl Into<String>) -> Self {
        Self { id: id.into(), redelivered: None }
    }

    /// Whether the broker says that it has delivered this message before; the default is yes. Such a message may have
    /// crashed its consumer, so pgonce first commits a claim, which counts the attempt. A first delivery needs no such
    /// commit.
    #[must_use]
    pub fn redelivered(mut self, redelivered: bool) -> Self {
        self.redelivered = Some(redelivered);
        self
    }
}

/// The result of handling a message.
#[derive(Debug)]
#[non_exhaustive]
pub struct Handled<T, E> {
    /// What to tell the broker.
    pub verdict: Verdict,
    /// The work's value, from now or [an earlier delivery](Done::is_replay), or why there is none.
    pub result: Result<Done<T>, RunError<E>>,
}

/// What to tell the broker about a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Done and committed.
    Ack,
    /// Not done: deliver it again after this time.
    Retry(Duration),
    /// Never to be done: put it where people look. The reason contains nothing of the message.
    DeadLetter(String),
}

impl Inbox {
    /// Handles a message once: begins, runs `work`, completes with its value and commits, as
    /// [`PgOnce::run`](crate::PgOnce::run) does. Says what to tell the broker. Tell it after this has returned, so that
    /// an acknowledged message is committed.
    ///
    /// | what happens | verdict |
    /// |---|---|
    /// | `work` returns a value, and its transaction is committed | `Ack` |
    /// | the message is done already | `Ack`; `work` does not run |
    /// | another consumer handles it, and the wait is over | `Retry` |
    /// | `work` fails: everything is rolled back, and the attempt counts | `Retry`, or `DeadLetter` when the attempts are used up |
    /// | `work` returns [`Failure::keep`](crate::Failure::keep) | `DeadLetter`, now and on each redelivery |
    /// | `work` returns [`Failure::later`](crate::Failure::later) | `Retry` with its pause; everything is rolled back, no attempt counts |
    /// | the connection breaks or the server ends the session while `work` runs, or COMMIT gets no answer | as if `work` failed, unless it was committed |
    /// | the database is read-only, has no schema, or is away before `work` begins | `Retry`; no attempt counts, unless a redelivered message already has its claim |
    /// | the id is invalid, or the database's encoding cannot represent it | `DeadLetter` |
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
    /// }
    /// # }
    /// ```
    ///
    /// # Cancel safety
    /// Cancel safe: the message is handled as a whole or not at all. Do not acknowledge it.
    pub async fn handle<T, E, Kind, F>(
        &self,
        pool: &PgPool,
        message: &Message,
        work: F,
    ) -> Handled<T, E>
    where
        T: Serialize + DeserializeOwned,
        E: WorkError<Kind>,
        F: AsyncFnOnce(&mut PgConnection) -> Result<T, E> + Clone,
    {
        let op = match self.operation(&message.id) {
            Ok(op) => op,
            Err(error) => {
                let verdict = self.counted(&message.id, Verdict::DeadLetter(error.to_string()));
                return Handled { verdict, result: Err(error.into()) };
            }
        };
        let first = message.redelivered == Some(false);
        let began = &AtomicBool::new(false);
        let work = async move |tx: &mut PgConnection| {
            began.store(true, Ordering::Relaxed);
            work(tx).await
        };
        let result = if first {
            self.once.run(pool, &op, work).await
        } else {
            // The message may have killed its consumer: a claim that is committed first counts this attempt.
            let work = async |given: &mut Work| {
                // After a serialization failure or deadlock, as in `run`.
                let mut restarts = Restarts::default();
                loop {
                    let tx = match given.last_tx().await {
                        Ok(tx) => tx,
                        Err(error) => return Err(Ending::Undo(error.into())),
                    };
                    match work.clone()(tx).await.map_err(E::into_ending) {
                        Err(Ending::Undo(error)) if error.is_contention() => {
                            given.undo_last_tx().await;
                            self.counts().count(&self.consumer, Event::Restarted);
                            if !restarts.pause().await {
                                return Err(Ending::Undo(error));
                            }
                        }
                        ended => return ended,
                    }
                }
            };
            self.once.perform_leased(pool, &op, self.lease, work).await
        };
        let ended = End::of(&result, began.load(Ordering::Relaxed));
        let verdict = self.verdict(pool, &op, ended, !first).await;
        Handled { verdict: self.counted(&message.id, verdict), result }
    }

    /// Counts a failed attempt at a [received](Inbox::receive) message, after its transaction was rolled back. Takes a
    /// pooled connection, and commits. `error` is kept for people (1000 characters; what the database cannot represent
    /// becomes question marks): it must contain nothing of the message.
    ///
    /// # Errors
    /// As [`begin`](crate::PgOnce::begin).
    ///
    /// # Cancel safety
    /// If dropped, the attempt may or may not be counted.
    pub async fn failed(&self, pool: &PgPool, id: &str, error: &str) -> Result<Verdict> {
        let op = self.operation(id)?;
        let row = self.count_attempt(pool, &op, error).await?;
        Ok(self.counted(id, self.after(&row)?))
    }

    /// Counts a verdict. Logs a dead message, without its reason: that may quote the message.
    fn counted(&self, id: &str, verdict: Verdict) -> Verdict {
        let event = match verdict {
            Verdict::Ack => Event::Acknowledged,
            Verdict::Retry(_) => Event::Retried,
            Verdict::DeadLetter(_) => Event::DeadLettered,
        };
        let counts = self.counts();
        counts.count(&self.consumer, event);
        if event == Event::DeadLettered {
            tracing::warn!(key = counts.hash(self.consumer.as_str(), id), "a message is dead");
        }
        verdict
    }

    async fn verdict(&self, pool: &PgPool, op: &Operation, ended: End, counted: bool) -> Verdict {
        let problem = match ended {
            End::Done => return Verdict::Ack,
            End::Elsewhere => return self.retry(1),
            End::Later(pause) => return Verdict::Retry(pause),
            End::Dead(reason) => return Verdict::DeadLetter(reason),
            End::Untranslatable => {
                let told = self.untranslatable(pool, op).await;
                return told.ok().flatten().map_or_else(|| self.retry(1), Verdict::DeadLetter);
            }
            End::Failed(problem) => problem,
        };
        let told = async {
            let row = match counted {
                false => self.count_attempt(pool, op, &problem).await?,
                true => self.status(pool, op).await?,
            };
            self.after(&row)
        };
        told.await.unwrap_or_else(|_| self.retry(1))
    }

    async fn count_attempt(&self, pool: &PgPool, op: &Operation, error: &str) -> Result<PgRow> {
        let count = |text: Option<String>| async move {
            procedure::ask(pool, self.policy.wait + procedure::ANSWER_MAX, || {
                sqlx::query(self.once.statements.count_attempt.clone())
                    .bind(self.consumer.as_str())
                    .bind(op.key().as_str())
                    .bind(millis(self.policy.retention))
                    .bind(millis(self.policy.wait))
                    .bind(self.cap())
                    .bind(text.clone())
            })
            .await
        };
        procedure::keeping(Some(error), count).await.map_err(|error| error.naming(op))
    }

    async fn status(&self, pool: &PgPool, op: &Operation) -> Result<PgRow> {
        let rows = OwnedTransaction::look(pool, || {
            sqlx::query(self.once.statements.message_status.clone())
                .bind(self.consumer.as_str())
                .bind(op.key().as_str())
                .bind(self.cap())
        });
        let none = || Error::new(ErrorKind::SchemaTooNew, "message_status gave no answer");
        rows.await?.pop().ok_or_else(none)
    }

    /// What to tell the broker after a failed attempt.
    fn after(&self, row: &PgRow) -> Result<Verdict> {
        let last_error = || get::<Option<String>>(row, "last_error");
        Ok(match get::<&str>(row, "status")? {
            "completed" => Verdict::Ack, // another consumer did it, or the stored value has another type
            "failed" => Verdict::DeadLetter(reason(last_error()?, FAILED)),
            "held" => Verdict::DeadLetter(reason(last_error()?, USED_UP)),
            "waiting" => self.retry(get::<i32>(row, "used")?.unsigned_abs()),
            _ => self.retry(1),
        })
    }

    fn retry(&self, attempts: u32) -> Verdict {
        let doubled = self.first_pause.saturating_mul(1 << attempts.saturating_sub(1).min(30));
        let pause = jitter(doubled.min(self.longest_pause));
        // Brokers and intervals take milliseconds.
        Verdict::Retry(Duration::from_millis(u64::try_from(pause.as_millis()).unwrap_or(u64::MAX)))
    }
}

/// What a result says about its message.
enum End {
    Done,
    /// The failure has nothing to do with this message, and must not count against it.
    Elsewhere,
    /// The work was put off.
    Later(Duration),
    Dead(String),
    /// The database's encoding cannot hold a text of ours; the message's id may be to blame.
    Untranslatable,
    /// Why the attempt failed.
    Failed(String),
}

impl End {
    /// `began`: whether the work began. From then on the message may be the cause, even of a failure that looks like the
    /// server's: a broken connection, a server-side timeout, a COMMIT without an answer.
    fn of<T, E>(result: &Result<Done<T>, RunError<E>>, began: bool) -> Self {
        let error = match result {
            Ok(_) | Err(RunError::Omitted(_)) => return Self::Done,
            Err(error) => error,
        };
        match error {
            RunError::InProgress(wait) => Self::Later(wait.retry_after()),
            RunError::Failed { .. } => Self::Dead(FAILED.to_owned()),
            RunError::Protocol(error) if !began && error.kind() == ErrorKind::Corrupt => {
                Self::Dead(error.to_string())
            }
            RunError::Protocol(error) if !began && error.is_untranslatable() => {
                Self::Untranslatable
            }
            RunError::Protocol(error) if !began && is_of_deployment(error) => Self::Elsewhere,
            RunError::Protocol(error) => Self::Failed(error.to_string()),
            RunError::Work { .. } => match error.retry_after() {
                Some(pause) => Self::Later(pause),
                None => Self::Failed(error.redacted()),
            },
            answer => Self::Failed(answer.to_string()),
        }
    }
}

fn is_of_deployment(error: &Error) -> bool {
    let kind = matches!(
        error.kind(),
        ErrorKind::SchemaOutdated
            | ErrorKind::SchemaTooNew
            | ErrorKind::InvalidInput
            | ErrorKind::ReadOnly
    );
    kind || error.is_retryable()
}
