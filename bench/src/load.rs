//! Clients that send their next request after each response, and rounds in which all variants take turns.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use hdrhistogram::Histogram;
use tokio::task::JoinSet;

use crate::cpu::Cpu;
use crate::figures::Row;
use crate::progress::Progress;

pub(crate) type Fault = anyhow::Error;

/// What a variant does repeatedly.
pub(crate) trait Work: Send + Sync + 'static {
    /// Does it once. Each call gets a different number.
    fn perform(&self, number: u64) -> impl Future<Output = Result<(), Fault>> + Send;
}

pub(crate) struct Sample {
    /// Calls of `perform` per second, all clients together.
    pub(crate) per_second: f64,
    pub(crate) latencies: Latencies,
    /// Per call, in microseconds.
    pub(crate) cpu: Cpu,
}

impl Sample {
    /// For one long piece of work.
    pub(crate) fn of_rate(per_second: f64) -> Self {
        Self { per_second, latencies: no_latencies(), cpu: Cpu { client: None, server: None } }
    }

    pub(crate) fn p99_ms(&self) -> f64 {
        self.latencies.value_at_percentile(99.0) as f64 / 1000.0
    }
}

/// The duration of each call in microseconds, to three digits.
pub(crate) type Latencies = Histogram<u64>;

pub(crate) fn no_latencies() -> Latencies {
    Histogram::new_with_max(LONGEST_MICROS, 3).unwrap_or_else(|_| unreachable!("within its limits"))
}

const LONGEST_MICROS: u64 = 3_600_000_000;
/// The length of the warm-up round, as a share of a round.
pub(crate) const WARM_UP: f64 = 0.25;

#[derive(Clone, Copy)]
pub(crate) struct Rounds {
    pub(crate) count: u16,
    pub(crate) each: Duration,
    /// The server's process, if its CPU time can be read.
    pub(crate) postmaster: Option<u32>,
}

pub(crate) struct Subject<W> {
    work: Arc<W>,
    next: Arc<AtomicU64>,
    pub(crate) row: Row,
}

impl<W: Work> Subject<W> {
    pub(crate) fn new(row: Row, work: W) -> Self {
        Self { work: Arc::new(work), next: Arc::default(), row }
    }

    /// Starts at `first`, so that its numbers differ from those of other starts.
    pub(crate) fn from(self, first: u64) -> Self {
        self.next.store(first, Ordering::Relaxed);
        self
    }

    /// Works for this long with this many clients.
    pub(crate) async fn work(&self, clients: u16, lasting: Duration) -> anyhow::Result<Sample> {
        self.round(clients, lasting, None).await
    }

    async fn round(
        &self,
        clients: u16,
        lasting: Duration,
        postmaster: Option<u32>,
    ) -> anyhow::Result<Sample> {
        let (began, before) = (Instant::now(), Cpu::now(postmaster));
        let mut tasks = JoinSet::new();
        for _ in 0..clients {
            tasks.spawn(client(Arc::clone(&self.work), Arc::clone(&self.next), began, lasting));
        }
        let mut latencies = no_latencies();
        while let Some(done) = tasks.join_next().await {
            let one = done?.context(self.row.name)?;
            latencies.add(one).unwrap_or_else(|_| unreachable!("of the same range"));
        }
        let per_second = latencies.len() as f64 / began.elapsed().as_secs_f64();
        let cpu = Cpu::now(postmaster).each_since(before, latencies.len());
        Ok(Sample { per_second, latencies, cpu })
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

/// Runs all subjects in turn in each round, so that noise hits all of them. A shorter first round warms
/// up and does not count.
pub(crate) async fn interleave<W: Work>(
    subjects: &mut [Subject<W>],
    clients: u16,
    rounds: Rounds,
    progress: &Progress,
) -> anyhow::Result<()> {
    let count = u64::from(rounds.count) + 1;
    let bar = progress.steps(count * subjects.len() as u64);
    for round in 0..count {
        for subject in &mut *subjects {
            bar.say(subject.row.name);
            match round {
                0 => drop(subject.work(clients, rounds.each.mul_f64(WARM_UP)).await?),
                _ => {
                    let sample = subject.round(clients, rounds.each, rounds.postmaster).await?;
                    subject.row.add(&sample);
                }
            }
            bar.step();
        }
    }
    Ok(())
}
