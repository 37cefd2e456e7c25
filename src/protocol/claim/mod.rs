//! The right to perform an operation.

mod id;

use std::sync::Arc;
use std::time::Duration;

use sqlx::{PgConnection, PgPool};
use tracing::Span;
use uuid::Uuid;

use crate::error::{Result, of_claim};
use crate::leased::lease::Lease;
use crate::operation::key::{Key, Scope};
use crate::operation::millis;
use crate::operation::response::Response;
use crate::protocol::answer::Finished;
use crate::protocol::statements::Statements;
use crate::telemetry::spans::span;
use crate::telemetry::{Counts, Event};
pub(crate) use id::{ClaimId, Extended};

/// The right to perform an operation, held by one caller and fenced by its token.
///
/// Plain data: it holds no connection and may move between tasks. Finish it with
/// [`complete`](Claim::complete), [`fail`](Claim::fail) or [`release`](Claim::release). Each is a
/// compare-and-set on the token; when the claim is no longer the caller's they answer
/// [`ClaimLost`](crate::ErrorKind::ClaimLost), nothing is written, and the caller must roll back.
///
/// Dropping a claim does no I/O and logs a line for debugging. A transactional claim then vanishes with the
/// rollback; if its transaction is committed all the same, the key stays in progress until its
/// retention ends or an operator releases it (its effect was committed, so it must not run again).
/// A leased claim lapses with its lease.
#[derive(Debug)]
#[must_use = "finish the claim with complete, fail or release"]
pub struct Claim {
    pub(crate) scope: Scope,
    pub(crate) key: Key,
    pub(crate) token: Uuid,
    pub(crate) attempt: u32,
    pub(crate) statements: Arc<Statements>,
    pub(crate) counts: Arc<Counts>,
    pub(crate) response_bytes_max: i64,
    /// How long a failure is remembered, if not as long as the key.
    pub(crate) failed_retention: Option<Duration>,
    /// Whether it goes on with what an earlier attempt has begun under a lease.
    pub(crate) recovered: bool,
    pub(crate) settled: bool,
    /// How long a call for it may take.
    pub(crate) answer_within: Duration,
}

impl Claim {
    /// How many claims the key has had, this one included. For people; the fence is the token.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// The fencing token. No other claim ever has the same one.
    #[must_use]
    pub fn token(&self) -> Uuid {
        self.token
    }

    /// Finishes with a response, which every later begin replays.
    ///
    /// Updates the key's row (HOT: no index changes) and holds its lock until the transaction ends.
    ///
    /// # Errors
    /// [`ClaimLost`](crate::ErrorKind::ClaimLost), or what the database answers; roll back on any.
    ///
    /// # Cancel safety
    /// Dropped before it returns, the update may or may not have been sent: roll the transaction
    /// back. Outside a transaction, begin again with the same key to find out.
    pub async fn complete(mut self, conn: &mut PgConnection, response: Response) -> Result<()> {
        self.settled = true;
        let finish = self.finish(conn, Finished::Completed, response);
        self.counted(span!("pgonce.complete", "complete"), Event::Completed, finish).await
    }

    /// Finishes with the response of a final failure, which every later begin replays.
    ///
    /// It keeps whatever the transaction wrote. To keep the failure and undo the writes, roll back
    /// to a savepoint first, or use [`PgOnce::run`](crate::PgOnce::run) with
    /// [`Failure::keep`](crate::Failure::keep), which does that.
    ///
    /// # Errors
    /// As [`complete`](Claim::complete).
    ///
    /// # Cancel safety
    /// As [`complete`](Claim::complete).
    pub async fn fail(mut self, conn: &mut PgConnection, response: Response) -> Result<()> {
        self.settled = true;
        let finish = self.finish(conn, Finished::Failed, response);
        self.counted(span!("pgonce.fail", "fail"), Event::Failed, finish).await
    }

    pub(crate) async fn finish(
        &self,
        conn: &mut PgConnection,
        finished: Finished,
        response: Response,
    ) -> Result<()> {
        let response = response.omitted_over(self.response_bytes_max);
        let statement = match finished {
            Finished::Completed => &self.statements.complete,
            Finished::Failed => &self.statements.fail,
        };
        let query = sqlx::query(statement.clone())
            .bind(self.scope.as_str())
            .bind(self.key.as_str())
            .bind(self.token)
            .bind(response.code)
            .bind(response.headers)
            .bind(response.body)
            .bind(response.omitted)
            .bind(self.response_bytes_max);
        let query = match finished {
            Finished::Completed => query,
            Finished::Failed => query.bind(self.failed_retention.map(millis)),
        };
        query.execute(conn).await.map(drop).map_err(of_claim)
    }

    /// Gives the claim back unfinished: the key can be begun again at once, with any fingerprint.
    /// The token stays dead.
    ///
    /// # Errors
    /// As [`complete`](Claim::complete).
    ///
    /// # Cancel safety
    /// As [`complete`](Claim::complete).
    pub async fn release(mut self, conn: &mut PgConnection) -> Result<()> {
        self.settled = true;
        let release = async {
            sqlx::query(self.statements.release.clone())
                .bind(self.scope.as_str())
                .bind(self.key.as_str())
                .bind(self.token)
                .execute(conn)
                .await
                .map(drop)
                .map_err(of_claim)
        };
        self.counted(span!("pgonce.release", "release"), Event::Released, release).await
    }

    async fn traced(&self, span: Span, verb: impl Future<Output = Result<()>>) -> Result<()> {
        self.counts.traced(&span, &self.scope, &self.key, verb).await
    }

    /// Runs a verb in its span and counts how it ends.
    async fn counted(
        &self,
        span: Span,
        event: Event,
        verb: impl Future<Output = Result<()>>,
    ) -> Result<()> {
        let ended = self.traced(span, verb).await;
        self.counts.ended(&self.scope, &self.key, event, &ended);
        ended
    }

    /// As [`complete`](Claim::complete) for a leased claim, when nothing else is to be written with it: takes a
    /// connection of the pool, and is committed when this returns. Sent again when the database is away for a moment.
    ///
    /// ```no_run
    /// # async fn example(pool: sqlx::PgPool, claim: pgonce::Claim) -> Result<(), pgonce::Error> {
    /// claim.complete_leased(&pool, pgonce::Response::json(&"receipt 17")?).await
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ClaimLost`](crate::ErrorKind::ClaimLost), or what the database answers. After one that
    /// [is retryable](crate::Error::is_retryable) it may be completed; begin again with the same key to find out.
    ///
    /// # Cancel safety
    /// Dropped before it returns, it may be completed.
    pub async fn complete_leased(mut self, pool: &PgPool, response: Response) -> Result<()> {
        self.settled = true;
        let (id, bytes_max) = (self.id(), self.response_bytes_max);
        let finish = id.finish(pool, Finished::Completed, response, bytes_max);
        self.traced(span!("pgonce.complete_leased", "complete_leased"), finish).await
    }

    /// As [`fail`](Claim::fail) for a leased claim, when nothing else is to be written with it; see
    /// [`complete_leased`](Claim::complete_leased).
    ///
    /// # Errors
    /// As [`complete_leased`](Claim::complete_leased).
    ///
    /// # Cancel safety
    /// Dropped before it returns, it may be failed.
    pub async fn fail_leased(mut self, pool: &PgPool, response: Response) -> Result<()> {
        self.settled = true;
        let (id, bytes_max) = (self.id(), self.response_bytes_max);
        let finish = id.finish(pool, Finished::Failed, response, bytes_max);
        self.traced(span!("pgonce.fail_leased", "fail_leased"), finish).await
    }

    /// As [`release`](Claim::release) for a leased claim; see [`complete_leased`](Claim::complete_leased). For work that
    /// has done nothing outside: another request may then use the key. Drop the claim otherwise, and it lapses.
    ///
    /// # Errors
    /// As [`complete_leased`](Claim::complete_leased).
    ///
    /// # Cancel safety
    /// Dropped before it returns, it may be released.
    pub async fn release_leased(mut self, pool: &PgPool) -> Result<()> {
        self.settled = true;
        let id = self.id();
        self.traced(span!("pgonce.release_leased", "release_leased"), id.release(pool)).await
    }

    /// Pushes the end of the lease to the [length](Lease::new) of `lease` from now, on the database's clock, and commits
    /// that. Never shortens it. Takes a connection of the pool for a moment.
    ///
    /// # Errors
    /// [`ClaimLost`](crate::ErrorKind::ClaimLost) when the claim was taken over;
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for a lease above ten years;
    /// [`Contention`](crate::ErrorKind::Contention) while another transaction has the key's row locked.
    ///
    /// # Cancel safety
    /// Dropped before it returns, the lease may or may not be longer; call it again.
    pub async fn extend(&mut self, pool: &PgPool, lease: Lease) -> Result<()> {
        let id = self.id();
        let extend = id.extend(pool, lease.length);
        self.traced(span!("pgonce.extend", "extend_leases"), extend).await
    }

    pub(crate) fn id(&self) -> ClaimId {
        ClaimId {
            scope: self.scope.clone(),
            key: self.key.clone(),
            token: self.token,
            statements: Arc::clone(&self.statements),
            counts: Arc::clone(&self.counts),
            failed_retention: self.failed_retention,
            answer_within: self.answer_within,
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.settled {
            tracing::debug!(
                key = self.counts.hash(self.scope.as_str(), self.key.as_str()),
                attempt = self.attempt,
                "claim dropped unfinished"
            );
        }
    }
}
