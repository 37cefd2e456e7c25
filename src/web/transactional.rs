//! Transactional routes: key, writes and response in one transaction, committed before the first byte.

use std::time::Duration;

use http::{Request, Response};
use http_body::Body;
use tower_service::Service;

use super::answer::{Answer, Refusal};
use super::body::Buffered;
use super::handle::Handle;
use super::layer::Idempotency;
use super::perform::{Answered, perform};
use super::service::Ended;
use super::settle::Settle;
use super::unkeyed::{NotBegun, not_begun, unkeyed};
use super::waiting::Waiting;
use crate::checkout::{Asked, Checkout};
use crate::claim::Claim;
use crate::error::{Error, ErrorKind, Result};
use crate::operation::Operation;

/// How long a rollback may hold up an answer. A statement that the handler gave up on may still run.
const ROLLBACK_MAX: Duration = Duration::from_secs(1);

pub(crate) async fn respond<S, B, R>(
    config: &Idempotency,
    inner: S,
    request: Request<Buffered<B>>,
    op: Operation,
) -> Ended<R, S::Error>
where
    S: Service<Request<Buffered<B>>, Response = Response<R>>,
    R: Body,
{
    let mut waiting = Waiting::new(config);
    loop {
        let once = &config.once;
        let asked = Checkout::ask(&config.pool, once, &op, Duration::ZERO, once.round_trips).await;
        let begun = match asked {
            Ok(Asked::Started(checkout, claim)) => {
                return run(config, inner, request, op, claim, checkout).await;
            }
            Ok(Asked::Answered(begin)) => Ok(begin),
            Err(error) => Err(error),
        };
        if waiting.again(&begun).await {
            continue;
        }
        return match not_begun(config, begun) {
            NotBegun::Told(begin) => Ended::Told(begin),
            NotBegun::Refused(refusal) => Ended::Refused(refusal),
            NotBegun::Run(run) => unkeyed(config, inner, request, Some(op), run).await,
        };
    }
}

/// Runs the handler in the transaction that holds its claim, and ends both.
async fn run<S, B, R>(
    config: &Idempotency,
    mut inner: S,
    request: Request<Buffered<B>>,
    op: Operation,
    claim: Claim,
    checkout: Checkout,
) -> Ended<R, S::Error>
where
    S: Service<Request<Buffered<B>>, Response = Response<R>>,
    R: Body,
{
    let handle = Handle::lend(&config.pool, false, op, claim.attempt(), Some(checkout), None);
    let (performed, left) = perform(config, &mut inner, request, &handle, true).await;
    let answered = performed.answered(left.kept);
    let (Answered { response, settle, stored }, checkout) = match (answered, left.checkout) {
        (Ok(answered), Some(checkout)) => (answered, checkout),
        (Ok(_), None) => unreachable!("BUG: the transaction is here unless it was kept"),
        (Err(ended), checkout) => {
            if let Some(checkout) = checkout {
                let _ = undo_work(checkout).await; // its answer stands
            }
            return ended;
        }
    };
    if settle == Settle::Complete && !left.tx_used {
        tracing::warn!(
            "a handler answered with a success and never used its transaction; what it wrote elsewhere is not \
             undone when it fails"
        );
        if config.unused_tx_refused && !config.observe {
            undo(Some(checkout)).await;
            let detail = "The service's operators must look.";
            return Ended::Refused(Refusal::new(Answer::TransactionUnused, detail));
        }
        config.counters.observe(Answer::TransactionUnused);
    }
    let committed = match settle {
        Settle::Complete if config.observe => checkout.complete_or_commit(claim, stored).await,
        Settle::Complete => checkout.complete(claim, stored).await,
        Settle::Fail => checkout.fail(claim, stored).await,
        Settle::Release | Settle::Lapse => {
            return match undo_work(checkout).await {
                Ok(()) => Ended::Answered(response, Answer::Released),
                Err(error) => Ended::Refused(Refusal::uncommitted(&error)),
            };
        }
    };
    match committed {
        Ok(()) => Ended::Answered(response, Answer::Performed),
        Err(error) => {
            if is_ended(&error) {
                tell_ended(&error);
            } else {
                tracing::warn!(%error, sqlstate = error.sqlstate(), "a handler's work was not committed");
            }
            Ended::Refused(Refusal::uncommitted(&error))
        }
    }
}

/// Whether the handler has ended its transaction itself.
fn is_ended(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::TransactionLost | ErrorKind::ClaimLost)
}

fn tell_ended(error: &Error) {
    tracing::error!(
        %error,
        sqlstate = error.sqlstate(),
        "a handler ended its transaction, or left a nested one open; what it wrote before it ended it is \
         committed without its key"
    );
}

/// Undoes the work of a handler that has come to nothing. An error: it has ended its own transaction.
async fn undo_work(checkout: Checkout) -> Result<()> {
    let undone = tokio::time::timeout(ROLLBACK_MAX, checkout.undo()).await;
    match undone {
        Ok(Err(error)) => {
            tell_ended(&error);
            Err(error)
        }
        _ => Ok(()), // or the connection is closed, and the server rolls back
    }
}

/// Rolls back before the answer leaves, so that an immediate retry does not meet its own predecessor. A
/// connection that is still busy is closed instead.
pub(crate) async fn undo(checkout: Option<Checkout>) {
    if let Some(checkout) = checkout {
        let _ = tokio::time::timeout(ROLLBACK_MAX, checkout.rollback()).await;
    }
}
