//! The right to perform an operation.

use std::sync::Arc;
use std::time::Duration;

use sqlx::PgConnection;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::answer::Finished;
use crate::error::{Result, database};
use crate::fingerprint::Fingerprint;
use crate::key::{Key, Scope, log_hash};
use crate::literal::{self, Literal};
use crate::operation::millis;
use crate::response::Response;
use crate::sql::Statements;

/// The longest response that is written out in a statement. Beyond it, a round trip saved matters less than the
/// digits to send and to read.
const LITERALS_BYTES_MAX: usize = 16 * 1024;

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
    pub(crate) response_bytes_max: i64,
    /// What the key's row will be written with, when it has none yet: the claim is then the key's lock, and
    /// ends with a row that is finished at once.
    pub(crate) unwritten: Option<Unwritten>,
    pub(crate) settled: bool,
}

#[derive(Debug)]
pub(crate) struct Unwritten {
    pub(crate) fingerprint: Option<Fingerprint>,
    pub(crate) retention: Duration,
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
        self.finish(conn, Finished::Completed, response).await
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
        self.finish(conn, Finished::Failed, response).await
    }

    pub(crate) async fn finish(
        &self,
        conn: &mut PgConnection,
        finished: Finished,
        response: Response,
    ) -> Result<()> {
        let statement = match (&self.unwritten, finished) {
            (Some(_), _) => &self.statements.insert_finished,
            (None, Finished::Completed) => &self.statements.complete,
            (None, Finished::Failed) => &self.statements.fail,
        };
        let mut query =
            sqlx::query(statement.clone()).bind(self.scope.as_str()).bind(self.key.as_str());
        query = match &self.unwritten {
            Some(row) => query
                .bind(row.fingerprint.as_ref().map(Fingerprint::as_bytes))
                .bind(millis(row.retention))
                .bind(finished.as_str()),
            None => query.bind(self.token),
        };
        query
            .bind(response.code)
            .bind(response.headers)
            .bind(response.body)
            .bind(response.omitted)
            .bind(self.response_bytes_max)
            .execute(conn)
            .await
            .map(drop)
            .map_err(database)
    }

    /// The statement that ends an unwritten claim, with its values in it; none for other claims, and for responses
    /// that are too long to be written out.
    pub(crate) fn ending(&self, finished: Finished, response: &Response) -> Option<String> {
        let row = self.unwritten.as_ref()?;
        let kept = |bytes| Some(bytes).filter(|_| !response.omitted).flatten();
        let (headers, body) = (kept(response.headers.as_deref()), kept(response.body.as_deref()));
        if headers.map_or(0, <[u8]>::len) + body.map_or(0, <[u8]>::len) > LITERALS_BYTES_MAX {
            return None;
        }
        let values = [
            Literal::Text(self.scope.as_str()),
            Literal::Text(self.key.as_str()),
            Literal::Bytes(row.fingerprint.as_ref().map(Fingerprint::as_bytes)),
            Literal::Number(Some(millis(row.retention))),
            Literal::Text(finished.as_str()),
            Literal::Number(response.code.map(i64::from)),
            Literal::Bytes(headers),
            Literal::Bytes(body),
            Literal::Flag(response.omitted),
            Literal::Number(Some(self.response_bytes_max)),
        ];
        Some(literal::fill(self.statements.insert_finished.as_str(), &values))
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
        release(&self.statements, conn, &self.scope, &self.key, self.token).await
    }

    /// Pushes the lease to `lease` from now, on the database's clock. Never shortens it.
    ///
    /// # Errors
    /// [`ClaimLost`](crate::ErrorKind::ClaimLost) when the claim was taken over;
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for a lease of zero or above the retention.
    ///
    /// # Cancel safety
    /// Dropped before it returns, the lease may or may not be longer; call it again.
    pub async fn extend(&mut self, conn: &mut PgConnection, lease: Duration) -> Result<()> {
        self.id().extend(conn, lease).await
    }

    pub(crate) fn id(&self) -> ClaimId {
        ClaimId {
            scope: self.scope.clone(),
            key: self.key.clone(),
            token: self.token,
            statements: Arc::clone(&self.statements),
        }
    }
}

/// What names a claim in the table, for those who help its holder.
#[derive(Clone)]
pub(crate) struct ClaimId {
    scope: Scope,
    key: Key,
    token: Uuid,
    statements: Arc<Statements>,
}

impl ClaimId {
    pub(crate) async fn extend(&self, conn: &mut PgConnection, lease: Duration) -> Result<()> {
        sqlx::query(self.statements.extend.clone())
            .bind(self.scope.as_str())
            .bind(self.key.as_str())
            .bind(self.token)
            .bind(millis(lease))
            .execute(conn)
            .await
            .map(drop)
            .map_err(database)
    }

    pub(crate) async fn note(
        &self,
        conn: &mut PgConnection,
        progress: Option<&[u8]>,
        error: Option<&str>,
        lapse: bool,
    ) -> Result<()> {
        sqlx::query(self.statements.note.clone())
            .bind(self.scope.as_str())
            .bind(self.key.as_str())
            .bind(self.token)
            .bind(progress)
            .bind(error)
            .bind(lapse)
            .execute(conn)
            .await
            .map(drop)
            .map_err(database)
    }

    pub(crate) async fn record_step(
        &self,
        conn: &mut PgConnection,
        name: &str,
        definition: Option<&Fingerprint>,
        output: &[u8],
    ) -> Result<()> {
        sqlx::query(self.statements.record_step.clone())
            .bind(self.scope.as_str())
            .bind(self.key.as_str())
            .bind(self.token)
            .bind(name)
            .bind(definition.map(Fingerprint::as_bytes))
            .bind(output)
            .execute(conn)
            .await
            .map(drop)
            .map_err(database)
    }

    pub(crate) async fn recorded_steps(&self, conn: &mut PgConnection) -> Result<Vec<PgRow>> {
        sqlx::query(self.statements.recorded_steps.clone())
            .bind(self.scope.as_str())
            .bind(self.key.as_str())
            .bind(self.token)
            .fetch_all(conn)
            .await
            .map_err(database)
    }

    pub(crate) fn log_hash(&self) -> String {
        log_hash(self.scope.as_str(), self.key.as_str())
    }
}

/// The statement behind [`Claim::release`] and [`PgOnce::release`](crate::PgOnce::release).
pub(crate) async fn release(
    statements: &Statements,
    conn: &mut PgConnection,
    scope: &Scope,
    key: &Key,
    token: Uuid,
) -> Result<()> {
    sqlx::query(statements.release.clone())
        .bind(scope.as_str())
        .bind(key.as_str())
        .bind(token)
        .execute(conn)
        .await
        .map(drop)
        .map_err(database)
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.settled {
            tracing::debug!(
                key = log_hash(self.scope.as_str(), self.key.as_str()),
                attempt = self.attempt,
                "claim dropped unfinished"
            );
        }
    }
}
