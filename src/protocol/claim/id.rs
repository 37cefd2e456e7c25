//! What a claim's helpers do for it: calls that commit by themselves.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{PgConnection, PgPool, Postgres, Row, SqlStr};
use uuid::Uuid;

use crate::error::{Error, ErrorKind, Result, database, of_claims_call};
use crate::operation::fingerprint::Fingerprint;
use crate::operation::key::{Key, Scope};
use crate::operation::millis;
use crate::operation::response::Response;
use crate::protocol::answer::Finished;
use crate::protocol::procedure;
use crate::protocol::statements::Statements;
use crate::telemetry::{Counts, Event};
use crate::transactional::OwnedTransaction;

/// What names a claim in the table, for those who help its holder.
#[derive(Clone)]
pub(crate) struct ClaimId {
    pub(super) scope: Scope,
    pub(super) key: Key,
    pub(super) token: Uuid,
    pub(crate) statements: Arc<Statements>,
    pub(crate) counts: Arc<Counts>,
    /// How long a failure is remembered, if not as long as the key.
    pub(super) failed_retention: Option<Duration>,
    /// How long a call for it may take.
    pub(crate) answer_within: Duration,
}

/// What became of a claim's lease.
pub(crate) enum Extended {
    Pushed,
    /// Another transaction has the row locked.
    Locked,
    Lost,
}

impl ClaimId {
    /// Completes or fails the claim. Sent again when the database is away for a moment.
    pub(crate) async fn finish(
        &self,
        pool: &PgPool,
        finished: Finished,
        response: Response,
        response_bytes_max: i64,
    ) -> Result<()> {
        let ended = self.send_finish(pool, finished, response, response_bytes_max).await;
        self.counts.ended(&self.scope, &self.key, finished.into(), &ended);
        ended
    }

    async fn send_finish(
        &self,
        pool: &PgPool,
        finished: Finished,
        response: Response,
        response_bytes_max: i64,
    ) -> Result<()> {
        let response = response.omitted_over(response_bytes_max);
        let statement = match finished {
            Finished::Completed => &self.statements.complete_leased,
            Finished::Failed => &self.statements.fail_leased,
        };
        let (result, again) = procedure::call_patiently(pool, self.answer_within, || {
            let query = self
                .named(statement)
                .bind(response.code)
                .bind(response.headers.as_deref())
                .bind(response.body.as_deref())
                .bind(response.omitted)
                .bind(response_bytes_max);
            match finished {
                Finished::Completed => query,
                Finished::Failed => query.bind(self.failed_retention.map(millis)),
            }
        })
        .await;
        match result {
            // An earlier call may have got through, and only its answer not.
            Err(error) if again && error.kind() == ErrorKind::ClaimLost => {
                let row = procedure::ask(pool, self.answer_within, || {
                    self.named(&self.statements.finished_by)
                })
                .await?;
                let status: Option<&str> = row.try_get(0).map_err(database)?;
                if status == Some(finished.as_str()) { Ok(()) } else { Err(error) }
            }
            result => result.map(drop).map_err(of_claims_call),
        }
    }

    pub(crate) async fn release(&self, pool: &PgPool) -> Result<()> {
        let query = || self.named(&self.statements.release_leased);
        let called = procedure::call_patiently(pool, self.answer_within, query).await.0;
        let released = called.map(drop).map_err(of_claims_call);
        self.counts.ended(&self.scope, &self.key, Event::Released, &released);
        released
    }

    pub(crate) async fn extend(&self, pool: &PgPool, lease: Duration) -> Result<()> {
        match Self::extend_all(pool, &[(self, lease)], self.answer_within).await?.first() {
            Some(Extended::Pushed) => Ok(()),
            Some(Extended::Locked) => {
                let message = "another transaction has the key's row locked; try again";
                Err(Error::new(ErrorKind::Contention, message))
            }
            _ => Err(self.lost("the claim is lost: released, taken over, finished or forgotten")),
        }
    }

    /// The error of a lost claim, counted and logged.
    pub(crate) fn lost(&self, message: &str) -> Error {
        let error = Error::new(ErrorKind::ClaimLost, message);
        self.note(&error);
        error
    }

    /// Counts and logs an error that the person on call must know of.
    pub(crate) fn note(&self, error: &Error) {
        self.counts.note(&self.scope, &self.key, error);
    }

    pub(crate) fn count(&self, event: Event) {
        self.counts.count(&self.scope, event);
    }

    /// Pushes the leases of claims of one schema, with one call. An answer for each, in their order.
    pub(crate) async fn extend_all(
        pool: &PgPool,
        claims: &[(&Self, Duration)],
        within: Duration,
    ) -> Result<Vec<Extended>> {
        let Some((first, _)) = claims.first() else { return Ok(Vec::new()) };
        let row = procedure::ask(pool, within, || {
            sqlx::query(first.statements.extend_leases.clone())
                .bind(claims.iter().map(|(id, _)| id.scope.as_str()).collect::<Vec<_>>())
                .bind(claims.iter().map(|(id, _)| id.key.as_str()).collect::<Vec<_>>())
                .bind(claims.iter().map(|(id, _)| id.token).collect::<Vec<_>>())
                .bind(claims.iter().map(|(_, lease)| millis(*lease)).collect::<Vec<_>>())
        })
        .await
        .map_err(of_claims_call)?;
        let answers: Vec<String> = row.try_get("answers").map_err(database)?;
        let answer = |answer: &String| match answer.as_str() {
            "extended" => Extended::Pushed,
            "locked" => Extended::Locked,
            _ => Extended::Lost,
        };
        Ok(answers.iter().map(answer).collect())
    }

    pub(crate) async fn report_progress(&self, pool: &PgPool, progress: &[u8]) -> Result<()> {
        let query = || self.named(&self.statements.report_progress).bind(progress);
        procedure::call_patiently(pool, self.answer_within, query)
            .await
            .0
            .map(drop)
            .map_err(of_claims_call)
            .inspect_err(|error| self.note(error))
    }

    /// Records a step in the caller's transaction.
    pub(crate) async fn record_step(
        &self,
        conn: &mut PgConnection,
        name: &str,
        definition: Option<&Fingerprint>,
        output: &[u8],
    ) -> Result<()> {
        self.step(&self.statements.record_step, name, definition, output)
            .execute(conn)
            .await
            .map(drop)
            .map_err(database)
            .inspect_err(|error| self.note(error))
    }

    /// Records a step in a commit of its own.
    pub(crate) async fn commit_step(
        &self,
        pool: &PgPool,
        name: &str,
        definition: Option<&Fingerprint>,
        output: &[u8],
    ) -> Result<()> {
        let query = || self.step(&self.statements.commit_step, name, definition, output);
        procedure::call_patiently(pool, self.answer_within, query)
            .await
            .0
            .map(drop)
            .map_err(of_claims_call)
            .inspect_err(|error| self.note(error))
    }

    /// Reads the recorded steps; it locks the claim's row for a moment.
    pub(crate) async fn recorded_steps(&self, pool: &PgPool) -> Result<Vec<PgRow>> {
        OwnedTransaction::look(pool, || self.named(&self.statements.recorded_steps)).await
    }

    pub(crate) fn log_hash(&self) -> String {
        self.counts.hash(self.scope.as_str(), self.key.as_str())
    }

    /// A statement with scope, key and token bound.
    pub(crate) fn named(&self, statement: &SqlStr) -> Query<'_, Postgres, PgArguments> {
        sqlx::query(statement.clone())
            .bind(self.scope.as_str())
            .bind(self.key.as_str())
            .bind(self.token)
    }

    fn step<'q>(
        &'q self,
        statement: &SqlStr,
        name: &'q str,
        definition: Option<&'q Fingerprint>,
        output: &'q [u8],
    ) -> Query<'q, Postgres, PgArguments> {
        self.named(statement).bind(name).bind(definition.map(Fingerprint::as_bytes)).bind(output)
    }
}
