//! Requests that run without a claim: they have no key, or it was not begun.

use http::{Request, Response};
use http_body::Body;
use tower_service::Service;

use super::answer::{Answer, Refusal};
use super::body::Buffered;
use super::handle::Handle;
use super::layer::IdempotencyLayer;
use super::perform::{Answered, perform};
use super::service::{Ended, answer_to};
use super::settle::Settle;
use super::transactional::undo;
use crate::error::{ErrorKind, Result};
use crate::operation::Operation;
use crate::operation::key::Key;
use crate::protocol::answer::Begin;
use crate::transactional::OwnedTransaction;

/// Runs the handler without a claim. What it writes through the layer is one transaction all the same. `op`: what
/// the request names, for the keys that remotes are handed.
pub(crate) async fn unkeyed<S, B, R>(
    config: &IdempotencyLayer,
    mut inner: S,
    request: Request<Buffered<B>>,
    op: Option<Operation>,
    run: Unkeyed,
) -> Ended<R, S::Error>
where
    S: Service<Request<Buffered<B>>, Response = Response<R>>,
    R: Body,
{
    let mut checkout = None;
    if config.is_transactional() && run.connected {
        checkout = match OwnedTransaction::begin(&config.pool).await {
            Ok(checkout) => Some(checkout),
            // It may do without: OnceTx says so if it does not.
            Err(_) if config.observe || config.fail_open => None,
            Err(error) => return Ended::Refused(Refusal::unasked(&error)),
        };
    }
    let op = op.unwrap_or_else(nameless);
    let handle = Handle::lend(&config.pool, !config.is_transactional(), op, 0, checkout, None);
    let (performed, left) = perform(config, &mut inner, request, &handle, false).await;
    let Answered { response, settle, .. } = match performed.answered(left.kept) {
        Ok(answered) => answered,
        Err(ended) => {
            undo(left.checkout).await;
            return ended;
        }
    };
    match (settle, left.checkout) {
        (_, None) => {}
        (Settle::Complete, Some(checkout)) => {
            if let Err(error) = checkout.commit_probed().await {
                tracing::warn!(%error, sqlstate = error.sqlstate(), "a handler's work was not committed");
                let mut refusal = Refusal::uncommitted(&error);
                if refusal.answer == Answer::CommitUnknown {
                    refusal = refusal.not_retryable();
                    refusal.detail =
                        "It may be done or not; nothing was noted to find out by.".into();
                }
                return Ended::Refused(refusal);
            }
        }
        (_, checkout) => undo(checkout).await,
    }
    Ended::Answered(response, run.called)
}

/// What a request without a key does: an operation like no other.
fn nameless() -> Operation {
    Operation::new("no key", Key::generate()).expect("BUG: both are within their limits")
}

/// What to do with a request whose key was not begun.
pub(crate) enum NotBegun {
    Told(Begin),
    Refused(Refusal),
    /// Run it all the same.
    Run(Unkeyed),
}

/// A run without a claim.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Unkeyed {
    pub(crate) called: Answer,
    /// Whether a connection may be had; another wait for none would only hold the request up.
    pub(crate) connected: bool,
}

impl Unkeyed {
    pub(crate) const USUAL: Self = Self { called: Answer::Unkeyed, connected: true };
}

/// A begin that did not start the operation.
pub(crate) fn not_begun(
    config: &IdempotencyLayer,
    op: &Operation,
    begun: Result<Begin>,
) -> NotBegun {
    let error = match begun {
        Ok(begin) if config.observe => {
            let counts = config.once.counts(op);
            counts.http_observed(answer_to(&begin).code());
            counts.observed(op, &begin);
            return NotBegun::Run(Unkeyed::USUAL);
        }
        Ok(begin) => return NotBegun::Told(begin),
        Err(error) => error,
    };
    tracing::error!(%error, sqlstate = error.sqlstate(), "an idempotency key could not be begun");
    let refusal = Refusal::unasked(&error);
    let connected = error.kind() != ErrorKind::Connection;
    if config.observe {
        config.once.counts(op).http_observed(refusal.answer.code());
        return NotBegun::Run(Unkeyed { called: Answer::Unkeyed, connected });
    }
    // After anything else the database has been asked and may have answered: it may be done or at work.
    let unasked = matches!(
        error.kind(),
        ErrorKind::Connection
            | ErrorKind::ReadOnly
            | ErrorKind::SchemaOutdated
            | ErrorKind::Database
    );
    if config.fail_open && unasked {
        tracing::warn!("a request runs without idempotency protection");
        return NotBegun::Run(Unkeyed { called: Answer::Unprotected, connected });
    }
    NotBegun::Refused(refusal)
}
