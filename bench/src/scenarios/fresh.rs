//! fresh: every key is new.

use pgonce::sqlx::{PgConnection, PgPool};
use pgonce::{Operation, PgOnce, RunError};

use crate::Bench;
use crate::arena::Stage;
use crate::compare::{Entry, Mix, Orders, compare, costs};
use crate::figures::{BARE, Cost, HAND_WRITTEN, Outcome, Row};
use crate::load::{Fault, Subject, Work};
use crate::machine::resident_bytes;
use crate::meter;
use crate::orders::{SCOPE, Shop, Way, key};
use crate::print::grouped;

const ABOUT: &str = "Every key is new. Look at run's ratios: to bare shows the cost of any protection, to hand-written \
    the cost of pgonce over the usual way. An optimistic call skips the look.";
const RUN: &str = "run";
const OPTIMISTIC: &str = "run, optimistic";
const VERBS: &str = "begin, complete";
const ENTRIES: [Entry; 5] = [
    (BARE, Way::Bare, Mix::Fresh),
    (HAND_WRITTEN, Way::HandWritten, Mix::Fresh),
    (RUN, Way::Run, Mix::Fresh),
    (OPTIMISTIC, Way::Optimistic, Mix::Fresh),
    (VERBS, Way::Verbs, Mix::Fresh),
];
/// Delays of a network: in one building, and in one data centre or region.
const AWAY_MS: [f64; 2] = [0.25, 1.0];

pub(crate) async fn run(bench: &mut Bench<'_>) -> anyhow::Result<()> {
    let costs = costs(bench, &ENTRIES).await?;
    for clients in bench.args.clients.clone() {
        let stage = bench.stage("fresh").await?;
        let mut outcome =
            compare(bench, &stage, ("fresh", clients, ABOUT), (&ENTRIES, &costs), RUN).await?;
        if clients == bench.first_clients() {
            rolled_back(bench, &stage, &mut outcome).await?;
            memory(bench, &stage, &mut outcome).await?;
        }
        bench.tell(outcome);
    }
    if bench.args.delay_ms > 0.0 {
        return Ok(());
    }
    for delay_ms in AWAY_MS {
        let stage = bench.arena.stage("away", delay_ms).await?;
        let head = ("fresh", bench.first_clients(), "The same with a slower network.");
        let mut outcome = compare(bench, &stage, head, (&ENTRIES, &costs), RUN).await?;
        outcome.delay_ms = Some(delay_ms);
        bench.tell(outcome);
    }
    Ok(())
}

/// Work that fails before it writes.
struct Failing {
    once: PgOnce,
    pool: PgPool,
}

impl Work for Failing {
    async fn perform(&self, number: u64) -> Result<(), Fault> {
        let op = Operation::new(SCOPE, format!("failing {}", key(number)))?;
        let work = async |_: &mut PgConnection| Err::<(), Fault>(anyhow::anyhow!("no"));
        match self.once.run(&self.pool, &op, work).await {
            Err(RunError::Work { .. }) => Ok(()),
            Err(error) => Err(error.into()),
            Ok(_) => Err(anyhow::anyhow!("failing work was stored")),
        }
    }
}

/// The cost of an attempt whose work fails.
async fn rolled_back(
    bench: &Bench<'_>,
    stage: &Stage,
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    let once = stage.once.clone();
    let cost = meter::count(stage, bench.args.counted, |pool| Failing { once, pool }).await?;
    outcome.figures.push(("rolled_back_wal_bytes", cost.wal_bytes.into()));
    Ok(())
}

/// Whether this process's memory grows with the number of keys it has seen.
async fn memory(bench: &Bench<'_>, stage: &Stage, outcome: &mut Outcome) -> anyhow::Result<()> {
    let clients = outcome.clients;
    let (pool, each) = (stage.pool(clients).await?, bench.rounds().each);
    let shop = Shop::new(stage, Way::Run, pool.clone());
    // These keys are new, too.
    let orders = Orders::new(shop, Mix::Fresh).from(1 << 36);
    let subject = Subject::new(Row::new(RUN, Cost::default()), orders);
    subject.work(clients, each).await?; // so that memory is in use
    let before = resident_bytes();
    let keys = subject.work(clients, each).await?.latencies.len();
    let grown = resident_bytes().zip(before).map(|(after, before)| after as f64 - before as f64);
    pool.close().await;
    if let Some(grown) = grown {
        let keys = grouped(keys);
        outcome.notes.push(format!("Memory grew by {:.1} MB over {keys} keys.", grown / 1e6));
        outcome.figures.push(("rss_growth_bytes", grown.into()));
    }
    Ok(())
}
