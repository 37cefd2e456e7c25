//! fresh: every key is new.

use pgonce::sqlx::{PgConnection, PgPool};
use pgonce::{Operation, PgOnce, RunError};

use crate::bench::Bench;
use crate::bench::arena::Stage;
use crate::bench::compare::{Entry, Mix, Orders, compare, costs};
use crate::bench::figures::{BARE, Cost, FLOOR, HAND_WRITTEN, Outcome, Row};
use crate::bench::load::{Fault, Subject, Work};
use crate::bench::machine::resident_bytes;
use crate::bench::meter;
use crate::bench::orders::{SCOPE, Shop, Way, key};
use crate::exit::CliError;
use crate::output::grouped;

const ABOUT: &str = "Every key is new. Look at run's ratios: to bare is what protection costs at all, to hand-written \
    what pgonce costs beside the usual way. An optimistic call leaves out the look.";
const RUN: &str = "run";
const OPTIMISTIC: &str = "run, optimistic";
const VERBS: &str = "begin, complete";
const ENTRIES: [Entry; 6] = [
    (BARE, Way::Bare, Mix::Fresh),
    (HAND_WRITTEN, Way::HandWritten, Mix::Fresh),
    (FLOOR, Way::Floor, Mix::Fresh),
    (RUN, Way::Run, Mix::Fresh),
    (OPTIMISTIC, Way::Optimistic, Mix::Fresh),
    (VERBS, Way::Verbs, Mix::Fresh),
];
/// What a network inside one data centre adds.
const AWAY_MS: f64 = 1.0;
/// More than the allocator takes and gives back by itself.
const GROWTH_MAX: f64 = 4_000_000.0;

pub(in crate::bench) async fn run(bench: &mut Bench<'_>) -> Result<(), CliError> {
    let costs = costs(bench, &ENTRIES).await?;
    for clients in bench.args.clients.clone() {
        let stage = bench.stage("fresh").await?;
        let mut outcome =
            compare(bench, &stage, ("fresh", clients, ABOUT), (&ENTRIES, &costs), RUN).await?;
        outcome.aim_at_no_doubles();
        if bench.args.delay_ms == 0.0 {
            aim_at_throughput(&mut outcome, clients);
        }
        if clients == bench.first_clients() {
            aim_at_costs(&mut outcome);
            rolled_back(bench, &stage, &mut outcome).await?;
            memory(bench, &stage, &mut outcome).await?;
        }
        aim_at_distance(&mut outcome, bench.args.delay_ms);
        bench.tell(outcome)?;
    }
    if bench.args.delay_ms > 0.0 {
        return Ok(());
    }
    let stage = bench.arena.stage("away", AWAY_MS).await?;
    let head = ("fresh", bench.first_clients(), "The same, on a machine that is further away.");
    let mut outcome = compare(bench, &stage, head, (&ENTRIES, &costs), RUN).await?;
    outcome.delay_ms = Some(AWAY_MS);
    aim_at_distance(&mut outcome, AWAY_MS);
    bench.tell(outcome)
}

/// As prototypes of the same statements did, with every guard.
fn aim_at_throughput(outcome: &mut Outcome, clients: u16) {
    let many = clients >= 32;
    let to_hand = |outcome: &Outcome, name| outcome.ratio_of(name, HAND_WRITTEN);
    let run = to_hand(outcome, RUN);
    outcome.at_least("throughput of run to hand-written", if many { 0.95 } else { 0.92 }, run);
    let optimistic = to_hand(outcome, OPTIMISTIC);
    outcome.at_least(
        "throughput of run, optimistic, to hand-written",
        if many { 1.08 } else { 1.04 },
        optimistic,
    );
    let to_bare = outcome.ratio_of(OPTIMISTIC, BARE);
    outcome.at_least(
        "throughput of run, optimistic, to bare",
        if many { 0.59 } else { 0.68 },
        to_bare,
    );
    let verbs = to_hand(outcome, VERBS);
    outcome.at_least("throughput of begin, complete to hand-written", 0.78, verbs);
}

/// Round trips outweigh the rest on a slow way.
fn aim_at_distance(outcome: &mut Outcome, delay_ms: f64) {
    if delay_ms >= AWAY_MS {
        let (run, optimistic) =
            (outcome.ratio_of(RUN, HAND_WRITTEN), outcome.ratio_of(OPTIMISTIC, HAND_WRITTEN));
        outcome.at_least("throughput of run to hand-written", 0.95, run);
        outcome.at_least("throughput of run, optimistic, to hand-written", 1.12, optimistic);
    }
}

fn aim_at_costs(outcome: &mut Outcome) {
    let cost = |name| outcome.row(name).map_or(Cost::default(), |row| row.cost);
    let (run, optimistic, verbs) = (cost(RUN), cost(OPTIMISTIC), cost(VERBS));
    outcome.at_most("round trips of run, the work's included", 5.0, run.round_trips);
    outcome.at_most(
        "round trips of run, optimistic, the work's included",
        4.0,
        optimistic.round_trips,
    );
    outcome.at_most("WAL bytes of run", 1240.0, run.wal_bytes);
    outcome.at_most("transaction ids of run", 1.0, run.xids);
    outcome.at_most("WAL bytes of begin, complete", 1330.0, verbs.wal_bytes);
    outcome.at_most("dead rows of run", 0.0, run.dead_rows);
}

/// Fails before it has written anything.
struct Failing {
    once: PgOnce,
    pool: PgPool,
}

impl Work for Failing {
    async fn perform(&self, number: u64) -> Result<(), Fault> {
        let op = Operation::new(SCOPE, format!("failing {}", key(number)))?;
        let work = async |_: &mut PgConnection| Err::<(), Fault>("no".into());
        match self.once.run(&self.pool, &op, work).await {
            Err(RunError::Work(_)) => Ok(()),
            Err(error) => Err(error.into()),
            Ok(_) => Err("failing work was stored".into()),
        }
    }
}

/// What an attempt costs whose work fails.
async fn rolled_back(
    bench: &Bench<'_>,
    stage: &Stage,
    outcome: &mut Outcome,
) -> Result<(), CliError> {
    let once = stage.once.clone();
    let cost = meter::count(stage, bench.args.counted, |pool| Failing { once, pool }).await?;
    outcome.figures.push(("rolled_back_wal_bytes", cost.wal_bytes.into()));
    outcome.at_most("WAL bytes of a rolled-back run", 0.0, cost.wal_bytes);
    Ok(())
}

/// Whether this process grows with the keys that it has seen.
async fn memory(bench: &Bench<'_>, stage: &Stage, outcome: &mut Outcome) -> Result<(), CliError> {
    let clients = outcome.clients;
    let (pool, each) = (stage.pool(clients).await?, bench.rounds().each);
    let shop = Shop::new(stage, Way::Run, pool.clone());
    // Keys that are new again.
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
    outcome.at_most("bytes by which memory grew", GROWTH_MAX, grown);
    Ok(())
}
