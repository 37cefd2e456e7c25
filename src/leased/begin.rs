//! Asking for a claim that outlives its transaction.

use std::time::Duration;

use sqlx::PgPool;
use uuid::Uuid;

use crate::client::PgOnce;
use crate::error::Result;
use crate::operation::limits::check_lease;
use crate::operation::{Operation, attempts, millis};
use crate::protocol::answer::Begin;
use crate::protocol::procedure;

impl PgOnce {
    /// Begins with a lease, for work that leaves the database: the claim is committed when this returns. Takes a
    /// connection of the pool for a moment; the work holds none.
    ///
    /// The claim lapses `lease` after this call, on the database's clock, unless it is
    /// [extended](crate::Claim::extend). The lease takes 1 ms up to the retention. `Started` writes two rows.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use pgonce::{Begin, Operation, PgOnce, Response};
    /// # async fn example(pool: sqlx::PgPool, once: PgOnce) -> Result<(), Box<dyn std::error::Error>> {
    /// # async fn call_the_provider() -> Vec<u8> { vec![] }
    /// let op = Operation::new("acme/charges.create", "order-17")?;
    /// if let Begin::Started(claim) = once.begin_leased(&pool, &op, Duration::from_secs(30)).await? {
    ///     let answer = call_the_provider().await;
    ///     claim.complete_leased(&pool, Response::bytes(answer)).await?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`begin`](PgOnce::begin). When the answer is lost it asks again, up to three times.
    ///
    /// # Cancel safety
    /// Dropped before it returns, the claim may have been committed; it then lapses with its lease.
    pub async fn begin_leased(
        &self,
        pool: &PgPool,
        op: &Operation,
        lease: Duration,
    ) -> Result<Begin> {
        self.ask_leased(pool, op, lease, op.wait).await
    }

    pub(crate) async fn ask_leased(
        &self,
        pool: &PgPool,
        op: &Operation,
        lease: Duration,
        wait: Duration,
    ) -> Result<Begin> {
        op.check(self.retention)?;
        check_lease(lease, op.retention.unwrap_or(self.retention))?;
        let token = Uuid::new_v4();
        let row = procedure::ask_again(pool, wait + procedure::ANSWER_MAX, || {
            sqlx::query(self.statements.begin_leased.clone())
                .bind(op.scope.as_str())
                .bind(op.key.as_str())
                .bind(token)
                .bind(millis(lease))
                .bind(op.fingerprint.as_ref().map(|fingerprint| fingerprint.as_bytes()))
                .bind(millis(op.retention.unwrap_or(self.retention)))
                .bind(millis(wait))
                .bind(op.on_lapse.as_str())
                .bind(op.max_attempts.map(attempts))
                .bind(op.lock_replay)
        })
        .await
        .map_err(|error| error.in_schema(&self.schema).naming(op))?;
        self.answer(op, &row, Some(token))
    }
}
