//! Messages that are delivered at least once and take effect once.

mod encoding;
mod handle;

use std::sync::Arc;
use std::time::Duration;

use sqlx::PgConnection;
use sqlx::postgres::PgRow;
use tracing::Instrument;

use crate::client::{PgOnce, get, response};
use crate::error::{Error, ErrorKind, Result, database};
use crate::leased::lease::Lease;
use crate::operation::key::{Key, Scope};
use crate::operation::limits::{check_lease, check_pauses};
use crate::operation::response::Response;
use crate::operation::{Class, Operation, Policy, attempts, millis};
use crate::protocol::record::Record;
use crate::telemetry::spans::span;
use crate::telemetry::{Counts, Event};

pub use handle::{Handled, Message, Verdict};

/// A consumer of messages. Stores the ids that it has handled, in the transaction that handles them.
///
/// The consumer's name is the scope of its keys, a message's id the key. Consumers with different names are
/// independent.
///
/// ```
/// # use pgonce::{Inbox, PgOnce, Policy};
/// let month = std::time::Duration::from_secs(30 * 86_400);
/// let inbox = Inbox::new(&PgOnce::new(), "orders")?
///     .policy(Policy::inbox().retention(month)?.max_attempts(5)?)?;
/// # Ok::<(), pgonce::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Inbox {
    once: PgOnce,
    consumer: Scope,
    policy: Policy,
    first_pause: Duration,
    longest_pause: Duration,
    lease: Lease,
    class: Option<Class>,
}

const LEASE_DEFAULT: Duration = Duration::from_secs(10);
const FIRST_PAUSE_DEFAULT: Duration = Duration::from_secs(1);
const LONGEST_PAUSE_DEFAULT: Duration = Duration::from_secs(300);

/// What [`Inbox::receive`] says of a message.
#[derive(Debug)]
#[must_use = "only `New` allows the message to be handled"]
pub enum Received {
    /// New, and recorded as done in this transaction: handle it in the same transaction.
    New(Receipt),
    /// Done; the response is what [`Inbox::handle`] stored, or empty.
    Seen(Response),
    /// Another transaction or a live claim has it: the broker must deliver it again.
    InProgress,
    /// Its attempts are used up, it failed for good, or its row is corrupt; the text says why.
    Dead(String),
    /// The id is invalid, or the database's encoding cannot represent it; the rest of the batch is unaffected.
    Refused(Error),
}

/// The record of a message that this transaction handles.
#[derive(Debug, Clone)]
pub struct Receipt {
    op: Operation,
    attempt: u32,
}

impl Receipt {
    /// How many attempts there were, this one included.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// A key for what you send because of this message: the same in every attempt, so that the receiver recognizes a
    /// repetition. See [`Operation::derived_key`].
    #[must_use]
    pub fn derived_key(&self, name: &str) -> Key {
        self.op.derived_key(name)
    }
}

impl Inbox {
    /// A consumer's inbox, with [`Policy::inbox`].
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) if the name breaks the limits of a [`Scope`].
    pub fn new(once: &PgOnce, consumer: impl TryInto<Scope, Error: Into<Error>>) -> Result<Self> {
        Ok(Self {
            once: once.clone(),
            consumer: consumer.try_into().map_err(Into::into)?,
            policy: Policy::inbox(),
            first_pause: FIRST_PAUSE_DEFAULT,
            longest_pause: LONGEST_PAUSE_DEFAULT,
            lease: Lease::new(LEASE_DEFAULT)?,
            class: None,
        })
    }

    /// How long ids are remembered, how long to wait while another consumer handles the same message, and after how
    /// many attempts a message is dead. Default: [`Policy::inbox`]. The retention must outlast the last redelivery,
    /// also from a dead-letter queue or by people; see [`outlasts`](Inbox::outlasts).
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) if the retention is shorter than the [lease](Inbox::lease).
    pub fn policy(mut self, policy: Policy) -> Result<Self> {
        check_lease(self.lease.length, policy.retention)?;
        self.policy = policy;
        Ok(self)
    }

    /// Refuses a retention (or [one for failures](Policy::failed_retention)) shorter than `horizon`: the longest time until the broker, or a person with a dead-letter
    /// queue, may deliver a message again.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput).
    pub fn outlasts(self, horizon: Duration) -> Result<Self> {
        let failed = self.policy.failed_retention.unwrap_or(self.policy.retention);
        let remembers = failed.min(self.policy.retention);
        if remembers < horizon {
            return Err(Error::invalid(format!(
                "the inbox forgets after {} s what the broker may deliver again for {} s: a message could \
                 take effect twice",
                remembers.as_secs(),
                horizon.as_secs()
            )));
        }
        Ok(self)
    }

    /// What messages are counted under; see [`Class`]. By default the client's class.
    #[must_use]
    pub fn class(mut self, class: Class) -> Self {
        self.class = Some(class);
        self
    }

    /// The lease that [`handle`](Inbox::handle) takes on a redelivered message, and renews while the work runs.
    /// Default: ten seconds. A message whose consumer was killed stays *in progress* for this long.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) if it is longer than the retention.
    pub fn lease(mut self, lease: Lease) -> Result<Self> {
        check_lease(lease.length, self.policy.retention)?;
        self.lease = lease;
        Ok(self)
    }

    /// The pauses before a failed message is delivered again: the first and the longest; the pause doubles with each
    /// attempt. Default: one second and five minutes. 1 ms to one day; the first is not above the longest.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) outside these limits.
    pub fn pauses(mut self, first: Duration, longest: Duration) -> Result<Self> {
        check_pauses(first, longest)?;
        (self.first_pause, self.longest_pause) = (first, longest);
        Ok(self)
    }

    /// Asks in the caller's open transaction whether a message is new. `New` has recorded it there as done: record and
    /// effects commit or roll back together. **Outside a transaction the message is done as soon as this returns, and
    /// lost if the process then dies.**
    ///
    /// ```no_run
    /// # use pgonce::{Inbox, Received};
    /// # async fn example(pool: sqlx::PgPool, inbox: Inbox) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut tx = pool.begin().await?;
    /// if let Received::New(_) = inbox.receive(&mut tx, "message-17").await? {
    ///     sqlx::query("insert into orders default values").execute(&mut *tx).await?;
    /// }
    /// pgonce::commit(tx).await?; // and acknowledge after it
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Inserts one row, or takes over the row of an earlier attempt. If the work fails, roll back and call
    /// [`failed`](Inbox::failed), so that the attempt counts; [`handle`](Inbox::handle) does all of this.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) for an invalid id, and as [`begin`](PgOnce::begin). Roll back on any.
    ///
    /// # Cancel safety
    /// If dropped, the record may be in the transaction: roll back.
    pub async fn receive(&self, conn: &mut PgConnection, id: &str) -> Result<Received> {
        match self.receive_many(conn, &[id]).await?.pop() {
            Some(Received::Refused(error)) => Err(error),
            Some(received) => Ok(received),
            None => Err(Error::new(ErrorKind::SchemaTooNew, "receive gave no answer")),
        }
    }

    /// As [`receive`](Inbox::receive), for up to 1,000 messages in one round trip, or two if an id is not ASCII.
    /// Answers in the order of the ids. Of several messages with one id, the first is new and the others are seen.
    ///
    /// Receive one batch per transaction: overlapping batches then queue in the order of their ids and do not deadlock.
    /// If the work of one message fails, the whole transaction rolls back; then handle each message alone.
    ///
    /// # Errors
    /// As [`begin`](PgOnce::begin), and [`InvalidInput`](ErrorKind::InvalidInput) for too many. Roll back on any.
    ///
    /// # Cancel safety
    /// As [`receive`](Inbox::receive).
    pub async fn receive_many<S: AsRef<str>>(
        &self,
        conn: &mut PgConnection,
        ids: &[S],
    ) -> Result<Vec<Received>> {
        let mut ops: Vec<_> = ids.iter().map(|id| self.operation(id.as_ref())).collect();
        self.refuse_untranslatable(conn, &mut ops).await?;
        let asked: Vec<&str> = ops.iter().flatten().map(|op| op.key.as_str()).collect();
        let rows = sqlx::query(self.once.statements.receive.clone())
            .bind(self.consumer.as_str())
            .bind(asked)
            .bind(millis(self.policy.retention))
            .bind(millis(self.policy.wait))
            .bind(self.cap())
            .fetch_all(conn)
            .instrument(span!("pgonce.receive", "receive"))
            .await
            .map_err(database)?;
        let mut rows = rows.iter();
        let counts = self.counts();
        let received = |op: Result<Operation>| match op.map(|op| (op, rows.next())) {
            Err(error) => Ok(Received::Refused(error)),
            Ok((op, Some(row))) => received(op, row, &counts),
            Ok((_, None)) => {
                Err(Error::new(ErrorKind::SchemaTooNew, "receive gave too few answers"))
            }
        };
        ops.into_iter().map(received).collect()
    }

    /// A key for what you send because of a message: the same in every attempt and process, so that the receiver
    /// recognizes a repetition. See [`Operation::derived_key`].
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) for an invalid id.
    pub fn derived_key(&self, id: &str, name: &str) -> Result<Key> {
        Ok(Operation::new(&self.consumer, id)?.derived_key(name))
    }

    /// How long the consumer remembers its newest message; `None` if it has no messages. Reads all of them: for a check
    /// at deployment.
    ///
    /// # Errors
    /// Errors of the database.
    ///
    /// # Cancel safety
    /// Cancel safe: it only reads.
    pub async fn remembers(&self, conn: &mut PgConnection) -> Result<Option<Duration>> {
        let ms: Option<i64> = sqlx::query_scalar(self.once.statements.consumer_retention.clone())
            .bind(self.consumer.as_str())
            .fetch_optional(conn)
            .await
            .map_err(database)?
            .flatten();
        Ok(ms.map(|ms| Duration::from_millis(ms.unsigned_abs())))
    }

    /// Lets a dead message be handled again when it is delivered again, with all its attempts. `seen` is what
    /// [`inspect`](PgOnce::inspect) or [`list`](PgOnce::list) showed of it.
    ///
    /// # Errors
    /// [`ClaimLost`](ErrorKind::ClaimLost) if the message has changed since, or is unknown, forgotten, done, or being
    /// handled; the text says which.
    ///
    /// # Cancel safety
    /// Cancel safe: the message can be handled again, or is unchanged.
    pub async fn redrive(&self, conn: &mut PgConnection, id: &str, seen: &Record) -> Result<()> {
        sqlx::query(self.once.statements.redrive_message.clone())
            .bind(self.consumer.as_str())
            .bind(Key::new(id)?.as_str())
            .bind(&seen.seen)
            .execute(conn)
            .await
            .map(drop)
            .map_err(database)
    }

    fn operation(&self, id: &str) -> Result<Operation> {
        let mut op = Operation::new(&self.consumer, id)?.policy(self.policy);
        op.class.clone_from(&self.class);
        Ok(op)
    }

    fn counts(&self) -> Arc<Counts> {
        self.once.telemetry.of(self.class.as_ref().unwrap_or(&self.once.class))
    }

    fn cap(&self) -> i32 {
        self.policy.max_attempts.map_or(i32::MAX, attempts)
    }
}

fn received(op: Operation, row: &PgRow, counts: &Counts) -> Result<Received> {
    let count = |event| counts.count(&op.scope, event);
    count(Event::Begun);
    Ok(match get::<&str>(row, "answer")? {
        "new" => {
            count(Event::Started);
            count(Event::Completed);
            let attempt: i32 = get(row, "attempt")?;
            Received::New(Receipt { op, attempt: attempt.unsigned_abs() })
        }
        "seen" => {
            count(Event::Replayed);
            counts.duplicate(&op.scope, op.value);
            Received::Seen(response(row)?)
        }
        "in_progress" => {
            count(Event::InProgress);
            Received::InProgress
        }
        "dead" => {
            count(Event::Held);
            let or = if get::<&str>(row, "status")? == "failed" { FAILED } else { USED_UP };
            Received::Dead(reason(get(row, "last_error")?, or))
        }
        _ => return Err(Error::new(ErrorKind::SchemaTooNew, "receive gave an unknown answer")),
    })
}

/// Why a message is dead, unless its last failure left a text.
const FAILED: &str = "it has failed for good";
const USED_UP: &str = "its attempts are used up";

fn reason(last_error: Option<String>, or: &str) -> String {
    last_error.unwrap_or_else(|| or.to_owned())
}
