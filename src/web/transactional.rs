//! Transactional routes: key, writes and response in one transaction, committed before the first byte.

use std::time::Duration;

use http::{Request, Response};
use http_body::Body;
use tower_service::Service;

use super::answer::{Answer, Refusal};
use super::body::Buffered;
use super::handle::Handle;
use super::layer::IdempotencyLayer;
use super::perform::{Answered, perform};
use super::service::Ended;
use super::settle::Settle;
use super::unkeyed::{NotBegun, not_begun, unkeyed};
use crate::error::{Error, ErrorKind, Result};
use crate::operation::Operation;
use crate::protocol::answer::{Begin, Finished, InProgress};
use crate::telemetry::Event;
use crate::transactional::{Begun, Call, Ended as TxEnd, OwnedTransaction, Performing};

/// How long a rollback may hold up an answer. A statement that the handler gave up on may still run.
const ROLLBACK_MAX: Duration = Duration::from_secs(1);

pub(crate) async fn respond<S, B, R>(
    config: &IdempotencyLayer,
    inner: S,
    request: Request<Buffered<B>>,
    op: &Operation,
) -> Ended<R, S::Error>
where
    S: Service<Request<Buffered<B>>, Response = Response<R>>,
    R: Body,
{
    let mut call = Call::new(&config.once, &config.pool, op, config.waiting(op));
    let begun = match call.begin().await {
        Ok(Begun::Started(performing)) => {
            return run(config, inner, request, op, call, performing).await;
        }
        Ok(Begun::Answered(begin)) => Ok(begin),
        Err(error) => Err(error),
    };
    match not_begun(config, op, begun) {
        NotBegun::Told(begin) => Ended::Told(begin),
        NotBegun::Refused(refusal) => Ended::Refused(refusal),
        NotBegun::Run(run) => unkeyed(config, inner, request, Some(op.clone()), run).await,
    }
}

/// Runs the handler in the transaction of its key, and ends both.
async fn run<S, B, R>(
    config: &IdempotencyLayer,
    mut inner: S,
    request: Request<Buffered<B>>,
    op: &Operation,
    mut call: Call<'_>,
    performing: Performing,
) -> Ended<R, S::Error>
where
    S: Service<Request<Buffered<B>>, Response = Response<R>>,
    R: Body,
{
    let counts = config.once.counts(op);
    let count = |event| counts.count(&op.scope, event);
    count(Event::Started);
    let attempt = performing.attempt();
    let Performing { tx, right } = performing;
    let handle = Handle::lend(&config.pool, false, op.clone(), attempt, Some(tx), None);
    let (performed, left) = perform(config, &mut inner, request, &handle, true).await;
    let answered = performed.answered(left.kept);
    let (Answered { response, settle, stored }, tx) = match (answered, left.checkout) {
        (Ok(answered), Some(tx)) => (answered, tx),
        (Ok(_), None) => unreachable!("BUG: the transaction is here unless it was kept"),
        (Err(ended), None) => return ended,
        (Err(ended), Some(tx)) => {
            count(Event::Released);
            return match undo_work(&mut call, Performing { tx, right }).await {
                Ok(Some(begin)) if !config.observe => Ended::Told(begin),
                _ => ended, // its answer stands
            };
        }
    };
    if settle == Settle::Complete && !left.tx_used {
        tracing::warn!(
            "a handler answered with a success and never used its transaction; what it wrote elsewhere is not \
             undone when it fails"
        );
        if config.unused_tx_refused && !config.observe {
            undo(Some(tx)).await;
            let detail = "The service's operators must look.";
            return Ended::Refused(Refusal::new(Answer::TransactionUnused, detail));
        }
        counts.http_observed(Answer::TransactionUnused.code());
    }
    let performing = Performing { tx, right };
    let ended = match settle {
        Settle::Complete if config.observe => {
            call.finish_or_commit(performing, stored).await.map(|_| TxEnd::Committed)
        }
        Settle::Complete => call.finish(performing, Finished::Completed, stored).await,
        Settle::Fail => call.keep(performing, stored).await,
        Settle::Release | Settle::Lapse => {
            count(Event::Released);
            return match undo_work(&mut call, performing).await {
                Ok(Some(begin)) if !config.observe => Ended::Told(begin),
                Ok(_) => Ended::Answered(response, Answer::Released),
                Err(error) => Ended::Refused(Refusal::uncommitted(&error)),
            };
        }
    };
    match ended {
        Ok(TxEnd::Committed) => {
            count(if settle == Settle::Fail { Event::Failed } else { Event::Completed });
            Ended::Answered(response, Answer::Performed)
        }
        Ok(_) if config.observe => Ended::Answered(response, Answer::Unkeyed),
        Ok(TxEnd::Answered(begin)) => Ended::Told(begin),
        // An optimistic route at SERIALIZABLE, where a failure is kept only with what it was decided from.
        Ok(TxEnd::Lost) if settle == Settle::Fail => Ended::Answered(response, Answer::Released),
        Ok(TxEnd::Lost) => lost(call).await,
        Err(error) if config.observe && settle == Settle::Fail => {
            tracing::warn!(%error, "an observed failure was not kept");
            Ended::Answered(response, Answer::Unkeyed)
        }
        Err(error) => {
            counts.note(&op.scope, &op.key, &error);
            if error.kind() == ErrorKind::TransactionLost {
                tell_ended(&error);
            } else {
                tracing::warn!(%error, sqlstate = error.sqlstate(), "a handler's work was not committed");
            }
            Ended::Refused(Refusal::uncommitted(&error))
        }
    }
}

/// Another request had the key after all, and the work was rolled back. The handler cannot be called again.
async fn lost<R, E>(mut call: Call<'_>) -> Ended<R, E> {
    match call.begin().await {
        Ok(Begun::Answered(begin)) => Ended::Told(begin),
        Ok(Begun::Started(performing)) => {
            undo(Some(performing.tx)).await;
            Ended::Told(Begin::InProgress(InProgress { lease_remaining: None }))
        }
        Err(error) => Ended::Refused(Refusal::unasked(&error)),
    }
}

fn tell_ended(error: &Error) {
    tracing::error!(
        %error,
        sqlstate = error.sqlstate(),
        "a handler ended its transaction, or left a nested one open; what it wrote before it ended it is \
         committed without its key"
    );
}

/// Undoes the work of a handler that has come to nothing. Another request may have decided the operation meanwhile. An
/// error: the handler has ended its own transaction.
async fn undo_work(call: &mut Call<'_>, performing: Performing) -> Result<Option<Begin>> {
    let undone = tokio::time::timeout(ROLLBACK_MAX, call.undo(performing)).await;
    let undone = undone.unwrap_or(Ok(None)); // the connection is closed, and the server rolls back
    if let Err(error) = &undone {
        tell_ended(error);
    }
    undone
}

/// Rolls back before the answer leaves, so that an immediate retry does not meet its own predecessor. A
/// connection that is still busy is closed instead.
pub(crate) async fn undo(checkout: Option<OwnedTransaction>) {
    if let Some(checkout) = checkout {
        let _ = tokio::time::timeout(ROLLBACK_MAX, checkout.rollback()).await;
    }
}
