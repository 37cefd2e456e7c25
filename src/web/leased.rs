//! Leased routes: the claim is committed first, and the handler runs in a task that
//! survives its client.

use std::panic::resume_unwind;
use std::pin::pin;
use std::sync::Arc;

use http::{Request, Response};
use http_body::Body;
use tower_service::Service;
use tracing::{Instrument, Span};

use super::answer::{Answer, Refusal};
use super::body::Buffered;
use super::handle::Handle;
use super::layer::IdempotencyLayer;
use super::perform::{Answered, perform};
use super::service::Ended;
use super::settle::Settle;
use super::transactional::undo;
use super::unkeyed::{NotBegun, not_begun, unkeyed};
use crate::error::{Error, ErrorKind, Result, redacted};
use crate::leased::before::before;
use crate::leased::heartbeat::{Heartbeat, Stopped};
use crate::leased::lease::Lease;
use crate::leased::run::{give_up, stopped};
use crate::operation::response::Response as Stored;
use crate::operation::{OnLapse, Operation};
use crate::protocol::answer::{Begin, Finished, InProgress};
use crate::protocol::claim::{Claim, ClaimId};
use crate::telemetry::Event;
use crate::transactional::{Next, Restarts, Waiting, is_contention};

/// How a task ended: with the request, or before the handler had it.
#[allow(clippy::large_enum_variant, reason = "moved once")]
enum TaskEnd<S, B, R, E> {
    Ended(Ended<R, E>),
    NotStarted { begun: Result<Begin>, inner: S, request: Request<Buffered<B>>, waiting: Waiting },
}

pub(crate) async fn respond<S, B, R>(
    config: &Arc<IdempotencyLayer>,
    mut inner: S,
    mut request: Request<Buffered<B>>,
    op: &Operation,
    lease: Lease,
) -> Ended<R, S::Error>
where
    S: Service<Request<Buffered<B>>, Response = Response<R>> + Send + 'static,
    S::Error: Send + 'static,
    S::Future: Send,
    B: Body + Send + 'static,
    R: Body + Send + 'static,
    R::Data: Send,
{
    let mut waiting = config.waiting(op);
    let mut restarts = Restarts::default();
    loop {
        // Begun in the task, too: a claim committed by a future that is then dropped would have no
        // holder until its lease lapses.
        let work = begin_and_run(Arc::clone(config), inner, request, op.clone(), lease, waiting);
        let task = config.tasks.spawn(work.in_current_span());
        let begun = match task.await {
            Ok(TaskEnd::Ended(ended)) => return ended,
            Ok(TaskEnd::NotStarted { begun, inner: i, request: r, waiting: w }) => {
                (inner, request, waiting) = (i, r, w);
                begun
            }
            Err(gone) if gone.is_panic() => resume_unwind(gone.into_panic()),
            Err(_) => {
                let detail = "The service is shutting down.";
                return Ended::Refused(Refusal::new(Answer::Unavailable, detail));
            }
        };
        let begun = match begun {
            Ok(Begin::InProgress(wait)) => match waiting.again(op, &wait).await {
                Next::Look => continue,
                Next::Replay(replay) => Ok(Begin::Replay(replay)),
                Next::GiveUp => Ok(Begin::InProgress(wait)),
            },
            Ok(answer) => {
                waiting.end(Some(&answer));
                Ok(answer)
            }
            Err(error) if is_contention(&error) && restarts.pause().await => {
                config.once.counts(op).count(&op.scope, Event::Restarted);
                continue;
            }
            Err(error) => Err(error),
        };
        return match not_begun(config, op, begun) {
            NotBegun::Told(begin) => Ended::Told(begin),
            NotBegun::Refused(refusal) => Ended::Refused(refusal),
            NotBegun::Run(run) => unkeyed(config, inner, request, Some(op.clone()), run).await,
        };
    }
}

async fn begin_and_run<S, B, R>(
    config: Arc<IdempotencyLayer>,
    inner: S,
    request: Request<Buffered<B>>,
    op: Operation,
    lease: Lease,
    mut waiting: Waiting,
) -> TaskEnd<S, B, R, S::Error>
where
    S: Service<Request<Buffered<B>>, Response = Response<R>>,
    R: Body,
{
    match config.once.ask_leased(&config.pool, &op, lease, waiting.in_database()).await {
        Ok(begin @ Begin::Started(_)) => {
            begin.count(&config.once.counts(&op), &op, &Span::none());
            let Begin::Started(claim) = begin else { unreachable!("BUG: it has started") };
            waiting.leave();
            TaskEnd::Ended(run(&config, inner, request, op, lease, claim).await)
        }
        begun => TaskEnd::NotStarted { begun, inner, request, waiting },
    }
}

/// Runs the handler under its claim, renews the lease meanwhile, and settles the claim.
async fn run<S, B, R>(
    config: &IdempotencyLayer,
    mut inner: S,
    request: Request<Buffered<B>>,
    op: Operation,
    lease: Lease,
    mut claim: Claim,
) -> Ended<R, S::Error>
where
    S: Service<Request<Buffered<B>>, Response = Response<R>>,
    R: Body,
{
    // Beats until the claim is settled: storing a response may have to wait for a connection.
    let mut heartbeat = Heartbeat::start(&config.once.beside, &config.pool, &claim, lease);
    claim.answer_within = heartbeat.loans.answer_within();
    let loans = Some(heartbeat.loans.clone());
    let handle = Handle::lend(&config.pool, true, op.clone(), claim.attempt(), None, loans);
    let mut why = Stopped::Lost;
    let performed = {
        let mut stopped = pin!(async {
            why = heartbeat.stopped().await;
            if config.observe {
                std::future::pending().await // observed only: it goes on
            }
        });
        before(&mut stopped, perform(config, &mut inner, request, &handle, true)).await
    };
    let Some((performed, left)) = performed else {
        claim.settled = true;
        if why == Stopped::Silent {
            drop((handle, heartbeat)); // the connection is closed
            let error = stopped(&config.pool, config.policy.on_lapse, &claim.id(), why).await;
            return Ended::Refused(Refusal::uncommitted(&error));
        }
        // Another request holds the key now, so this handler was stopped.
        drop(claim.id().lost("another request took the key over"));
        undo(handle.finish().checkout).await;
        return told_by_holder(config, &op).await;
    };
    let given_up = GivenUp { config, acted: left.used };
    let ended_as = performed.ended_as();
    let Answered { response, settle, stored } = match performed.answered(left.kept) {
        Ok(answered) => answered,
        Err(ended) => {
            undo(left.checkout).await;
            drop(heartbeat);
            given_up.end(claim, config.holds_unknown(), &ended_as).await;
            return ended;
        }
    };
    let id = claim.id();
    let finished = match (settle, left.checkout) {
        (Settle::Complete, Some(checkout)) if !config.observe => {
            match checkout.complete(claim, stored).await {
                Ok(()) => return Ended::Answered(response, Answer::Performed),
                Err(error) => {
                    drop(heartbeat);
                    return uncommitted(config, &op, &id, &error).await;
                }
            }
        }
        (Settle::Complete, Some(checkout)) => {
            // Observed only: whatever becomes of the claim, the handler's writes stand.
            if let Err(error) = checkout.commit_probed().await {
                drop(heartbeat);
                claim.settled = true;
                return uncommitted(config, &op, &id, &error).await;
            }
            Finished::Completed
        }
        (Settle::Complete, None) => Finished::Completed,
        (Settle::Fail, checkout) => {
            undo(checkout).await;
            Finished::Failed
        }
        (settle @ (Settle::Release | Settle::Lapse), checkout) => {
            undo(checkout).await;
            drop(heartbeat); // a late beat would bring the lapsed claim back to life
            let answer = given_up.end(claim, settle == Settle::Lapse, &ended_as).await;
            return Ended::Answered(response, answer);
        }
    };
    store(config, &op, claim, finished, stored, response).await
}

/// Stores the response of outside work. The work is done, so its client is told in any case, unless
/// another request has taken the claim over: then that one's response is the operation's.
async fn store<R, E>(
    config: &IdempotencyLayer,
    op: &Operation,
    mut claim: Claim,
    finished: Finished,
    stored: Stored,
    response: Response<Buffered<R>>,
) -> Ended<R, E> {
    claim.settled = true;
    let bytes_max = claim.response_bytes_max;
    match claim.id().finish(&config.pool, finished, stored, bytes_max).await {
        Ok(()) => Ended::Answered(response, Answer::Performed),
        Err(error) if error.kind() == ErrorKind::ClaimLost && !config.observe => {
            told_by_holder(config, op).await
        }
        Err(error) => {
            // A retry takes the lapsed claim over and asks the remote again, under the same derived key.
            tracing::error!(%error, sqlstate = error.sqlstate(), "a response was sent and not stored");
            Ended::Answered(response, Answer::Unstored)
        }
    }
}

/// The handler's last writes were not committed, and neither was the end of its claim.
async fn uncommitted<R, E>(
    config: &IdempotencyLayer,
    op: &Operation,
    id: &ClaimId,
    error: &Error,
) -> Ended<R, E> {
    if error.kind() == ErrorKind::ClaimLost {
        return told_by_holder(config, op).await;
    }
    id.note(error);
    tracing::warn!(%error, sqlstate = error.sqlstate(), "a handler's work was not committed");
    // So that the retry need not wait for the lease. Refused if the commit got through after all.
    give_up(&config.pool, config.policy.on_lapse, id, Some(&redacted(error))).await;
    Ended::Refused(Refusal::uncommitted(error))
}

/// How a claim ends whose handler came to nothing.
struct GivenUp<'a> {
    config: &'a IdempotencyLayer,
    /// Whether the handler has asked for a derived key, or opened its last transaction.
    acted: bool,
}

impl GivenUp<'_> {
    /// Gives the claim back, when nothing can have happened outside: in this attempt, or in one that it goes on from.
    /// Otherwise its key stays with its request,
    /// which may begin again at once; or, where it is `unknown` what has happened, when the lease has run out. Where
    /// an operator decides, the claim is left to lapse.
    async fn end(&self, mut claim: Claim, unknown: bool, told: &str) -> Answer {
        let Self { config, .. } = self;
        let hold = config.policy.on_lapse == OnLapse::Hold;
        if unknown && !hold {
            claim.settled = true;
            return Answer::Unknown;
        }
        if unknown || self.acted || claim.recovered {
            claim.settled = true;
            give_up(&config.pool, config.policy.on_lapse, &claim.id(), Some(told)).await;
            return if hold { Answer::Unknown } else { Answer::Released };
        }
        if let Err(error) = claim.release_leased(&config.pool).await {
            tracing::warn!(%error, sqlstate = error.sqlstate(), "a claim was not given back; it lapses");
        }
        Answer::Released
    }
}

/// The answer of a request whose claim another one has taken over: what begin answers now, which is
/// that one's response, or *in progress*. Never its own, which is not the operation's.
async fn told_by_holder<R, E>(config: &IdempotencyLayer, op: &Operation) -> Ended<R, E> {
    match config.once.ask_pool(&config.pool, op).await {
        // Given back and free. It is not begun again here: the client decides.
        Ok(Begin::Started(mut claim)) => {
            claim.settled = true; // it was rolled back
            Ended::Told(Begin::InProgress(InProgress { lease_remaining: None }))
        }
        Ok(begin) => Ended::Told(begin),
        Err(error) => {
            let mut refusal = Refusal::unasked(&error);
            refusal.detail = "It may be done or not; the key finds out.".into();
            Ended::Refused(refusal)
        }
    }
}
