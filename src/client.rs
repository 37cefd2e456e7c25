//! The entry point: configuration and begin.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{PgConnection, Postgres, Row};
use uuid::Uuid;

use crate::error::{Error, ErrorKind, Result, database};
use crate::leased::heartbeat::Beside;
use crate::operation::key::{Key, Scope};
use crate::operation::response::Response;
use crate::operation::{Class, Operation, Policy, attempts, millis};
use crate::protocol::answer::{Begin, Finished, Held, HeldBecause, InProgress, Mismatch, Replay};
use crate::protocol::claim::Claim;
use crate::protocol::procedure::ANSWER_MAX;
use crate::protocol::schema::SchemaName;
use crate::protocol::statements::Statements;
use crate::rollout::{Rollout, RolloutMode};
use crate::telemetry::spans::span;
use crate::telemetry::{Counts, Telemetry};
#[cfg(feature = "tower")]
use crate::transactional::OwnedTransaction;
use crate::transactional::{Lines, Plans};

/// The entry point: schema and defaults. Cheap to clone; keeps no connection. Make one per process and clone it: only
/// clones share their [waits](Policy::wait), which costs less.
///
/// ```
/// use std::time::Duration;
/// use pgonce::{PgOnce, Policy, SchemaName};
///
/// let once = PgOnce::new()
///     .schema(SchemaName::new("billing_once")?)
///     .policy(Policy::new().retention(Duration::from_secs(7 * 86_400))?)
///     .response_bytes_max(64 * 1024);
/// # Ok::<(), pgonce::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct PgOnce {
    pub(crate) schema: SchemaName,
    pub(crate) statements: Arc<Statements>,
    pub(crate) beside: Beside,
    pub(crate) lines: Lines,
    pub(crate) plans: Plans,
    pub(crate) policy: Policy,
    pub(crate) response_bytes_max: u32,
    pub(crate) class: Class,
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) rollout: Option<Rollout>,
}

const RESPONSE_BYTES_MAX_DEFAULT: u32 = 1024 * 1024;

impl Default for PgOnce {
    fn default() -> Self {
        Self::new()
    }
}

impl PgOnce {
    /// Schema `pgonce`, [`Policy::new`], responses up to 1 MiB.
    #[must_use]
    pub fn new() -> Self {
        let schema = SchemaName::default();
        Self {
            statements: Arc::new(Statements::new(&schema)),
            beside: Beside::default(),
            lines: Lines::default(),
            plans: Plans::default(),
            schema,
            policy: Policy::new(),
            response_bytes_max: RESPONSE_BYTES_MAX_DEFAULT,
            class: Class::default(),
            telemetry: Arc::default(),
            rollout: None,
        }
    }

    /// Uses another schema.
    #[must_use]
    pub fn schema(mut self, schema: SchemaName) -> Self {
        self.statements = Arc::new(Statements::new(&schema));
        self.schema = schema;
        (self.lines, self.beside) = (Lines::default(), Beside::default()); // for the keys of one schema
        self
    }

    /// The policy of operations without their own.
    #[must_use]
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// How `run` treats an operation's key.
    pub(crate) fn mode_of(&self, op: &Operation) -> RolloutMode {
        let class = op.class.as_ref().unwrap_or(&self.class);
        let set = self.rollout.as_ref().and_then(|rollout| rollout.mode(class));
        set.or(op.mode).unwrap_or(RolloutMode::Required)
    }

    pub(crate) fn policy_of(&self, op: &Operation) -> Policy {
        op.policy.unwrap_or(self.policy)
    }

    /// How many bytes of a response may be stored, header block and body together. A longer response is stored as
    /// *omitted*: the key still blocks a second run, and a replay says that the response was not kept.
    #[must_use]
    pub fn response_bytes_max(mut self, bytes: u32) -> Self {
        self.response_bytes_max = bytes;
        self
    }

    /// Begins in the caller's open transaction: claim, effects and response commit or roll back together. Outside a
    /// transaction use [`begin_leased`](PgOnce::begin_leased): this claim would commit at once, and a crash before
    /// complete would block the key for its whole retention.
    ///
    /// `Started` writes one row and keeps the key's lock until the transaction ends; other answers write nothing. A
    /// rollback to an earlier savepoint removes the claim.
    ///
    /// ```no_run
    /// # use pgonce::{Begin, Operation, PgOnce, Response};
    /// # async fn example(pool: sqlx::PgPool, once: PgOnce) -> Result<(), Box<dyn std::error::Error>> {
    /// let op = Operation::new("acme/payments.create", "order-17")?;
    /// let mut tx = pool.begin().await?;
    /// match once.begin(&mut tx, &op).await? {
    ///     Begin::Started(claim) => {
    ///         sqlx::query("insert into payment (amount) values (100)").execute(&mut *tx).await?;
    ///         claim.complete(&mut tx, Response::bytes("paid")).await?;
    ///         pgonce::commit(tx).await?;
    ///     }
    ///     Begin::Replay(replay) => println!("done before: {} bytes", replay.response().body().len()),
    ///     Begin::InProgress(wait) => println!("come back in {:?}", wait.retry_after()),
    ///     Begin::Mismatch(_) => println!("this key belongs to another request"),
    ///     other => println!("an operator must look: {other:?}"),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput), [`Corrupt`](ErrorKind::Corrupt),
    /// [`Contention`](ErrorKind::Contention) (rerun the whole transaction with the same key), or an error of the
    /// database. Roll back on any.
    ///
    /// # Cancel safety
    /// If dropped, the claim may be in the transaction: roll back.
    pub async fn begin(&self, conn: &mut PgConnection, op: &Operation) -> Result<Begin> {
        let counts = self.counts(op);
        let span = span!("pgonce.begin", "begin_operation");
        counts.begun(&span, op);
        let ask = self.ask(conn, op, self.policy_of(op).wait);
        let begin = counts.traced(&span, &op.scope, &op.key, ask).await?;
        begin.count(&counts, op, &span);
        Ok(begin)
    }

    pub(crate) async fn ask(
        &self,
        conn: &mut PgConnection,
        op: &Operation,
        wait: Duration,
    ) -> Result<Begin> {
        let asked = self.query(op, wait).fetch_one(conn).await;
        let row = asked.map_err(|error| database(error).in_schema(&self.schema).naming(op))?;
        self.answer(op, &row, None)
    }

    /// Asks without waiting, in a transaction that rolls back.
    #[cfg(feature = "tower")]
    pub(crate) async fn ask_pool(&self, pool: &sqlx::PgPool, op: &Operation) -> Result<Begin> {
        let rows = OwnedTransaction::look(pool, || self.query(op, Duration::ZERO)).await;
        let none = || Error::new(ErrorKind::SchemaTooNew, "begin gave no answer");
        let row = rows
            .map_err(|error| error.in_schema(&self.schema).naming(op))?
            .pop()
            .ok_or_else(none)?;
        self.answer(op, &row, None)
    }

    fn query<'q>(&self, op: &'q Operation, wait: Duration) -> Query<'q, Postgres, PgArguments> {
        let policy = self.policy_of(op);
        sqlx::query(self.statements.begin.clone())
            .bind(op.scope.as_str())
            .bind(op.key.as_str())
            .bind(op.fingerprint.as_ref().map(|fingerprint| fingerprint.as_bytes()))
            .bind(millis(policy.retention))
            .bind(millis(wait))
            .bind(policy.on_lapse.as_str())
            .bind(policy.max_attempts.map(attempts))
            .bind(op.lock_replay)
    }

    /// `token`: the caller's; `begin_leased` does not return it.
    pub(crate) fn answer(&self, op: &Operation, row: &PgRow, token: Option<Uuid>) -> Result<Begin> {
        let attempt = || get::<Option<i32>>(row, "attempt").map(|n| n.unwrap_or(0).unsigned_abs());
        Ok(match get::<&str>(row, "answer")? {
            "started" => {
                let token = token.map_or_else(|| get(row, "token"), Ok)?;
                let mut claim = self.claim(&op.scope, &op.key, token, attempt()?, self.counts(op));
                claim.failed_retention = self.policy_of(op).failed_retention;
                claim.recovered = get::<Option<bool>>(row, "recovered")?.unwrap_or_default();
                Begin::Started(claim)
            }
            "replay" => Begin::Replay(replay(row)?),
            "in_progress" => Begin::InProgress(InProgress {
                lease_remaining: get::<Option<i64>>(row, "lease_remaining_ms")?
                    .map(|ms| Duration::from_millis(ms.unsigned_abs())),
            }),
            "mismatch" => Begin::Mismatch(Mismatch { attempt: attempt()? }),
            "held" => Begin::Held(Held {
                attempt: attempt()?,
                because: match get::<&str>(row, "held_because")? {
                    "lapsed" => HeldBecause::Lapsed,
                    _ => HeldBecause::Attempts,
                },
            }),
            _ => return Err(Error::new(ErrorKind::SchemaTooNew, "begin gave an unknown answer")),
        })
    }

    pub(crate) fn claim(
        &self,
        scope: &Scope,
        key: &Key,
        token: Uuid,
        attempt: u32,
        counts: Arc<Counts>,
    ) -> Claim {
        Claim {
            counts,
            scope: scope.clone(),
            key: key.clone(),
            token,
            attempt,
            statements: Arc::clone(&self.statements),
            response_bytes_max: i64::from(self.response_bytes_max),
            failed_retention: None,
            recovered: false,
            settled: false,
            answer_within: ANSWER_MAX,
        }
    }
}

pub(crate) fn replay(row: &PgRow) -> Result<Replay> {
    let status = match get::<&str>(row, "status")? {
        "completed" => Finished::Completed,
        _ => Finished::Failed,
    };
    Ok(Replay { status, response: response(row)? })
}

pub(crate) fn response(row: &PgRow) -> Result<Response> {
    Ok(Response {
        code: get(row, "response_code")?,
        headers: get(row, "response_headers")?,
        body: get(row, "response_body")?,
        omitted: get(row, "response_omitted")?,
    })
}

pub(crate) fn get<'r, T>(row: &'r PgRow, column: &str) -> Result<T>
where
    T: sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    row.try_get(column).map_err(database)
}
