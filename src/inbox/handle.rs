//! Handling a message from begin to commit, and what to tell the broker.

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
    /// A message with this id: the broker's, or one from its content that says better what must happen once
    /// (an order's number survives a publisher that sends twice). 1 to 255 bytes, as a [`Key`](crate::Key); a message
    /// with another one is a [`DeadLetter`](Verdict::DeadLetter), never one that is handled unprotected.
    pub fn new(id: impl Into<String>) -> Self {
        Self { id: id.into(), redelivered: None }
    }

    /// Whether the broker says that it has delivered this message before. A redelivered message may have crashed its
    /// consumer, so pgonce first commits a claim, which counts the attempt. A first delivery needs no such commit. If
    /// this is not called, the message is taken for a redelivered one.
    #[must_use]
    pub fn redelivered(mut self, redelivered: bool) -> Self {
        self.redelivered = Some(redelivered);
        self
    }
}

/// What became of a message.
#[derive(Debug)]
#[non_exhaustive]
pub struct Handled<T, E> {
    /// What to tell the broker.
    pub verdict: Verdict,
    /// What the work returned, now or [in an earlier delivery](Done::is_replay), or why there is nothing.
    pub result: Result<Done<T>, RunError<E>>,
}

/// What to tell the broker about a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is done, and committed.
    Ack,
    /// It is not done: deliver it again, after this time.
    Retry(Duration),
    /// It will not be done: put it where people look. The reason says nothing of what it was about.
    DeadLetter(String),
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
    /// | `work` fails: everything is rolled back, and the attempt is counted | `Retry`, or `DeadLetter` when the attempts are used up |
    /// | `work` returns [`Failure::keep`](crate::Failure::keep) | `DeadLetter`, now and whenever it comes again |
    /// | `work` returns [`Failure::later`](crate::Failure::later) | `Retry` with its pause; everything is rolled back, and nothing is counted |
    /// | the connection breaks or the server ends the session while `work` runs, or COMMIT gets no answer | as a failure of `work`, unless it turns out to be committed |
    /// | the database is away before `work` begins, or is read-only, or has no schema | `Retry`, and nothing is counted |
    /// | the id is invalid, or the database's encoding cannot hold it | `DeadLetter` |
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
    /// Cancel safe: dropped at any point, the message is handled whole or not at all. Do not acknowledge it.
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
                let verdict = Verdict::DeadLetter(error.to_string());
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
            // It may have killed its consumer: a claim that is committed first counts this attempt.
            let work = async |held: &mut Work| {
                // Transactions that lost against another one, as in `run`.
                let mut restarts = Restarts::default();
                loop {
                    let tx = match held.last_tx().await {
                        Ok(tx) => tx,
                        Err(error) => return Err(Ending::Undo(error.into())),
                    };
                    match work.clone()(tx).await.map_err(E::into_ending) {
                        Err(Ending::Undo(error)) if error.is_contention() => {
                            held.undo_last_tx().await;
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
        let began = began.load(Ordering::Relaxed);
        let verdict = self.verdict(pool, &op, Attempt { counted: !first, began }, &result).await;
        Handled { verdict, result }
    }

    /// Says that the work of a message that was [received](Inbox::receive) has failed, after its transaction was
    /// rolled back: counts the attempt, on a connection of the pool, and commits that. `error` is kept for people (1000 characters,
    /// with question marks for what the database cannot hold); say nothing in it of what the message was about.
    ///
    /// # Errors
    /// As [`begin`](crate::PgOnce::begin).
    ///
    /// # Cancel safety
    /// Dropped before it returns, the attempt may or may not be counted.
    pub async fn failed(&self, pool: &PgPool, id: &str, error: &str) -> Result<Verdict> {
        let op = self.operation(id)?;
        let row = self.count(pool, &op, error).await?;
        self.after(&row)
    }

    async fn verdict<T, E>(
        &self,
        pool: &PgPool,
        op: &Operation,
        attempt: Attempt,
        result: &Result<Done<T>, RunError<E>>,
    ) -> Verdict {
        let problem = match result {
            Ok(_) | Err(RunError::Omitted(_)) => return Verdict::Ack,
            Err(RunError::InProgress(wait)) => return Verdict::Retry(wait.retry_after()),
            Err(RunError::Failed { .. }) => return Verdict::DeadLetter(FAILED.to_owned()),
            Err(RunError::Protocol(error)) if error.kind() == ErrorKind::Corrupt => {
                return Verdict::DeadLetter(error.to_string());
            }
            Err(RunError::Protocol(error)) if error.is_untranslatable() => {
                let told = self.untranslatable(pool, op).await;
                return told.ok().flatten().map_or_else(|| self.retry(1), Verdict::DeadLetter);
            }
            Err(RunError::Protocol(error)) if is_elsewhere(error, attempt) => return self.retry(1),
            Err(error @ RunError::Work { .. }) => match error.retry_after() {
                Some(pause) => return Verdict::Retry(pause),
                None => error.redacted(),
            },
            Err(RunError::Protocol(error)) => error.to_string(),
            Err(answer) => answer.to_string(),
        };
        let told = async {
            let row = match attempt.counted {
                false => self.count(pool, op, &problem).await?,
                true => self.status(pool, op).await?,
            };
            self.after(&row)
        };
        told.await.unwrap_or_else(|_| self.retry(1))
    }

    async fn count(&self, pool: &PgPool, op: &Operation, error: &str) -> Result<PgRow> {
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

    /// What to tell the broker after an attempt has failed.
    fn after(&self, row: &PgRow) -> Result<Verdict> {
        let last_error = || get::<Option<String>>(row, "last_error");
        Ok(match get::<&str>(row, "status")? {
            "completed" => Verdict::Ack, // by another consumer; or the stored value is of another type
            "failed" => Verdict::DeadLetter(reason(last_error()?, FAILED)),
            "held" => Verdict::DeadLetter(reason(last_error()?, USED_UP)),
            "waiting" => self.retry(get::<i32>(row, "used")?.unsigned_abs()),
            _ => self.retry(1),
        })
    }

    /// The pause after so many attempts.
    fn retry(&self, attempts: u32) -> Verdict {
        let doubled = self.first_pause.saturating_mul(1 << attempts.saturating_sub(1).min(30));
        let pause = jitter(doubled.min(self.longest_pause));
        // Brokers and intervals take milliseconds.
        Verdict::Retry(Duration::from_millis(u64::try_from(pause.as_millis()).unwrap_or(u64::MAX)))
    }
}

/// What is known of an attempt beside its result.
#[derive(Clone, Copy)]
struct Attempt {
    /// Whether it was counted before the work began.
    counted: bool,
    /// Whether the work began. What goes wrong from then on may be the message's fault, even if it looks like the
    /// server's: a connection that breaks, a server-side time-out, a COMMIT without an answer.
    began: bool,
}

/// Whether the failure has nothing to do with this message: it would only be counted against it.
fn is_elsewhere(error: &Error, attempt: Attempt) -> bool {
    let deployment = matches!(
        error.kind(),
        ErrorKind::SchemaOutdated
            | ErrorKind::SchemaTooNew
            | ErrorKind::InvalidInput
            | ErrorKind::ReadOnly
    );
    deployment || (!attempt.began && error.is_retryable())
}
