//! Clients that work as fast as they are answered, and rounds in which all variants take their turn.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::task::JoinSet;

use super::figures::Row;
use super::progress::Progress;
use crate::exit::{CliError, innermost};

pub(super) type Fault = Box<dyn Error + Send + Sync>;

/// What a variant does, again and again.
pub(super) trait Work: Send + Sync + 'static {
    /// Does it once. No two calls get the same number.
    fn perform(&self, number: u64) -> impl Future<Output = Result<(), Fault>> + Send;
}

/// What came of a time of work.
pub(super) struct Sample {
    /// Calls of `perform` per second, of all clients together.
    pub(super) per_second: f64,
    pub(super) latencies: Latencies,
}

impl Sample {
    pub(super) fn p99_ms(&self) -> f64 {
        self.latencies.value_at_percentile(99.0) as f64 / 1000.0
    }
}

/// How long each call took, in microseconds, to three digits.
pub(super) type Latencies = Histogram<u64>;

pub(super) fn no_latencies() -> Latencies {
    Histogram::new_with_max(LONGEST_MICROS, 3).unwrap_or_else(|_| unreachable!("within its limits"))
}

const LONGEST_MICROS: u64 = 3_600_000_000;
/// What a round is before the first one that counts.
pub(super) const WARM_UP: f64 = 0.25;

/// How long and how often is measured.
#[derive(Clone, Copy)]
pub(super) struct Rounds {
    pub(super) count: u16,
    pub(super) each: Duration,
}

/// A variant and what it has done so far.
pub(super) struct Subject<W> {
    work: Arc<W>,
    next: Arc<AtomicU64>,
    pub(super) row: Row,
}

impl<W: Work> Subject<W> {
    pub(super) fn new(row: Row, work: W) -> Self {
        Self { work: Arc::new(work), next: Arc::default(), row }
    }

    /// Works for a while with so many clients.
    pub(super) async fn work(&self, clients: u16, lasting: Duration) -> Result<Sample, CliError> {
        let began = Instant::now();
        let mut tasks = JoinSet::new();
        for _ in 0..clients {
            tasks.spawn(client(Arc::clone(&self.work), Arc::clone(&self.next), began, lasting));
        }
        let mut latencies = no_latencies();
        while let Some(done) = tasks.join_next().await {
            let done = done.map_err(|error| CliError::failed("bench", error))?;
            let one = done.map_err(|error| {
                let reason = innermost(error.as_ref());
                CliError::failed("bench", format!("{}: {reason}", self.row.name))
            })?;
            latencies.add(one).unwrap_or_else(|_| unreachable!("of the same range"));
        }
        let per_second = latencies.len() as f64 / began.elapsed().as_secs_f64();
        Ok(Sample { per_second, latencies })
    }
}

async fn client(
    work: Arc<impl Work>,
    next: Arc<AtomicU64>,
    began: Instant,
    lasting: Duration,
) -> Result<Latencies, Fault> {
    let mut latencies = no_latencies();
    while began.elapsed() < lasting {
        let asked = Instant::now();
        work.perform(next.fetch_add(1, Ordering::Relaxed)).await?;
        latencies.saturating_record(asked.elapsed().as_micros().try_into().unwrap_or(u64::MAX));
    }
    Ok(latencies)
}

/// Every round runs all subjects, one after the other, so that a noisy machine is noisy for all of them. The first
/// round warms up and does not count.
pub(super) async fn interleave<W: Work>(
    subjects: &mut [Subject<W>],
    clients: u16,
    rounds: Rounds,
    progress: &Progress,
) -> Result<(), CliError> {
    let count = u64::from(rounds.count) + 1;
    let bar = progress.steps(count * subjects.len() as u64);
    for round in 0..count {
        for subject in &mut *subjects {
            bar.say(subject.row.name);
            match round {
                0 => drop(subject.work(clients, rounds.each.mul_f64(WARM_UP)).await?),
                _ => {
                    let sample = subject.work(clients, rounds.each).await?;
                    subject.row.add(&sample);
                }
            }
            bar.step();
        }
    }
    Ok(())
}
