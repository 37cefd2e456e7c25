//! Begins a claim that outlives its transaction.

use std::time::Duration;

use sqlx::PgPool;
use uuid::Uuid;

use crate::client::PgOnce;
use crate::error::Result;
use crate::leased::lease::Lease;
use crate::operation::limits::check_lease;
use crate::operation::{Operation, attempts, millis};
use crate::protocol::answer::Begin;
use crate::protocol::procedure;
use crate::telemetry::spans::span;

impl PgOnce {
    /// Begins with a lease, for work that also acts outside the database. The claim is committed when this returns.
    /// Takes a pooled connection for a moment; the work needs none.
    ///
    /// The claim lapses after the [length](Lease::new) of `lease` (at most the retention), on the database's clock,
    /// unless you [extend](crate::Claim::extend) it: only `run_leased`, HTTP routes and inboxes have a heartbeat.
    /// `Started` writes two rows.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use pgonce::{Begin, Lease, Operation, PgOnce, Response};
    /// # async fn example(pool: sqlx::PgPool, once: PgOnce) -> Result<(), Box<dyn std::error::Error>> {
    /// # async fn call_the_provider() -> Vec<u8> { vec![] }
    /// let op = Operation::new("acme/charges.create", "order-17")?;
    /// let lease = Lease::new(Duration::from_secs(30))?;
    /// if let Begin::Started(claim) = once.begin_leased(&pool, &op, lease).await? {
    ///     let answer = call_the_provider().await;
    ///     claim.complete_leased(&pool, Response::bytes(answer)).await?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`begin`](PgOnce::begin). If the answer is lost, asks again, up to three times.
    ///
    /// # Cancel safety
    /// If dropped, the claim may be committed; it then lapses with its lease.
    pub async fn begin_leased(&self, pool: &PgPool, op: &Operation, lease: Lease) -> Result<Begin> {
        let counts = self.counts(op);
        let span = span!("pgonce.begin_leased", "begin_leased");
        counts.begun(&span, op);
        let ask = self.ask_leased(pool, op, lease, self.policy_of(op).wait);
        let begin = counts.traced(&span, &op.scope, &op.key, ask).await?;
        begin.count(&counts, op, &span);
        Ok(begin)
    }

    pub(crate) async fn ask_leased(
        &self,
        pool: &PgPool,
        op: &Operation,
        lease: Lease,
        wait: Duration,
    ) -> Result<Begin> {
        let policy = self.policy_of(op);
        check_lease(lease.length, policy.retention)?;
        let token = Uuid::new_v4();
        let row = procedure::ask_again(pool, wait + procedure::ANSWER_MAX, || {
            sqlx::query(self.statements.begin_leased.clone())
                .bind(op.scope.as_str())
                .bind(op.key.as_str())
                .bind(token)
                .bind(millis(lease.length))
                .bind(op.fingerprint.as_ref().map(|fingerprint| fingerprint.as_bytes()))
                .bind(millis(policy.retention))
                .bind(millis(wait))
                .bind(policy.on_lapse.as_str())
                .bind(policy.max_attempts.map(attempts))
                .bind(op.lock_replay)
        })
        .await
        .map_err(|error| error.in_schema(&self.schema).naming(op))?;
        self.answer(op, &row, Some(token))
    }
}
