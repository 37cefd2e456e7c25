//! Clients that lose responses, hang up, double-click and retry until they succeed.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::plan::{Fate, Faults, Payment, Plan};
use super::server::{Answer, Server};
use crate::exit::{CliError, innermost};

#[derive(Default)]
pub(super) struct Tally {
    pub(super) requests: u64,
    pub(super) replays: u64,
    pub(super) in_progress: u64,
    /// Times of the requests whose response reached the client.
    pub(super) latencies: Vec<Duration>,
    /// Key and number of each payment that a client considers paid.
    pub(super) answers: Vec<(String, i64)>,
}

/// More rounds than any payment should need.
const ROUNDS_MAX: u32 = 2000;
/// Server errors that a client tolerates per payment.
const ERRORS_MAX: u32 = 3;

/// Makes all payments of the plan with `clients` concurrent clients.
pub(super) async fn storm(
    server: Arc<Server>,
    plan: Arc<Plan>,
    clients: u16,
) -> Result<Tally, CliError> {
    let next = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..clients {
        tasks.spawn(client(Arc::clone(&server), Arc::clone(&plan), Arc::clone(&next)));
    }
    let mut total = Tally::default();
    while let Some(done) = tasks.join_next().await {
        let tally = done.map_err(|error| CliError::failed("demo", error))?;
        total.add(tally.map_err(|reason| CliError::failed("demo", reason))?);
    }
    Ok(total)
}

async fn client(
    server: Arc<Server>,
    plan: Arc<Plan>,
    next: Arc<AtomicUsize>,
) -> Result<Tally, String> {
    let mut tally = Tally::default();
    while let Some(payment) = plan.payments.get(next.fetch_add(1, Ordering::Relaxed)) {
        pay(&server, payment, plan.faults(payment), &mut tally).await?;
    }
    Ok(tally)
}

/// Repeats one payment until a response arrives.
async fn pay(
    server: &Server,
    payment: &Payment,
    mut faults: Faults,
    tally: &mut Tally,
) -> Result<(), String> {
    let mut errors = 0;
    for _ in 0..ROUNDS_MAX {
        let first = request(server, payment, faults.fate());
        let replies = if faults.is_impatient() {
            let (first, second) = tokio::join!(first, request(server, payment, faults.fate()));
            vec![first, second]
        } else {
            vec![first.await]
        };
        let mut paid = None;
        for reply in replies {
            match reply {
                Ok(reply) => paid = tally.count(&reply).or(paid),
                Err(error) if errors == ERRORS_MAX => {
                    return Err(format!("the server kept failing: {error}"));
                }
                Err(_) => errors += 1,
            }
        }
        if let Some(id) = paid {
            tally.answers.push((payment.key.clone(), id));
            return Ok(());
        }
        tokio::time::sleep(faults.pause()).await;
    }
    Err(format!("a client sent a payment {ROUNDS_MAX} times and got no response"))
}

/// One request, as the client sees it.
struct Reply {
    /// The server's response, if it finished one.
    answer: Option<Answer>,
    reached_client: bool,
    took: Duration,
}

async fn request(server: &Server, payment: &Payment, fate: Fate) -> Result<Reply, String> {
    let began = Instant::now();
    let work = server.charge(payment);
    let answer = match fate {
        Fate::HungUp { polls } => hang_up_after(polls, work).await.transpose(),
        Fate::Answered | Fate::AnswerLost => work.await.map(Some),
    };
    let answer = answer.map_err(|error| innermost(error.as_ref()))?;
    Ok(Reply { answer, reached_client: fate == Fate::Answered, took: began.elapsed() })
}

/// Polls the work `polls` times, then drops it, as an HTTP server does when its client hangs up.
async fn hang_up_after<F: Future>(polls: u32, work: F) -> Option<F::Output> {
    let mut work = pin!(work);
    let mut left = polls;
    poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        work.as_mut().poll(cx).map(Some)
    })
    .await
}

impl Tally {
    /// Counts a reply. Returns the payment's number if the client received it.
    fn count(&mut self, reply: &Reply) -> Option<i64> {
        self.requests += 1;
        match reply.answer? {
            Answer::InProgress => {
                self.in_progress += 1;
                None
            }
            Answer::Paid { id, replayed } => {
                self.replays += u64::from(replayed);
                if !reply.reached_client {
                    return None;
                }
                self.latencies.push(reply.took);
                Some(id)
            }
        }
    }

    fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.replays += other.replays;
        self.in_progress += other.in_progress;
        self.latencies.extend(other.latencies);
        self.answers.extend(other.answers);
    }
}
