//! Compares ways to take orders, with new or known keys: the base of fresh, replay, mixed and leased.

use pgonce::sqlx::PgPool;

use crate::Bench;
use crate::arena::Stage;
use crate::figures::{Cost, Outcome, Row};
use crate::load::{Fault, Subject, Work, interleave};
use crate::meter;
use crate::orders::{Shop, Way, key};
use crate::progress::Progress;

/// Which keys the requests have.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mix {
    Fresh,
    Replay,
    /// One key in ten is a replay.
    Mixed,
}

/// How many keys exist at the start.
const KNOWN: u64 = 50;

/// A shop and its sequence of keys.
pub(crate) struct Orders {
    shop: Shop,
    mix: Mix,
    /// The first number.
    first: u64,
}

impl Mix {
    fn pick(self, number: u64) -> u64 {
        match self {
            Self::Replay => number % KNOWN,
            Self::Mixed if number % 10 == 9 => number / 10 % KNOWN,
            Self::Fresh | Self::Mixed => KNOWN + number,
        }
    }
}

impl Orders {
    pub(crate) fn new(shop: Shop, mix: Mix) -> Self {
        Self { shop, mix, first: 0 }
    }

    /// Starts at `first`, so that its new keys differ from those of other starts.
    pub(crate) fn from(self, first: u64) -> Self {
        Self { first, ..self }
    }
}

impl Work for Orders {
    async fn perform(&self, number: u64) -> Result<(), Fault> {
        let number = self.mix.pick(self.first + number);
        self.shop.order(&key(number)).await.map(drop)
    }
}

/// A row of a comparison: its name, the protection, the keys.
pub(crate) type Entry = (&'static str, Way, Mix);

/// Costs of each entry, on one stage. They do not depend on the number of clients.
pub(crate) async fn costs(bench: &Bench<'_>, entries: &[Entry]) -> anyhow::Result<Vec<Cost>> {
    let stage = bench.arena.stage("costs", 0.0).await?;
    let pool = stage.pool(1).await?;
    let mut costs = Vec::new();
    for &(_, way, mix) in entries {
        ready(&stage, &pool, way, mix).await?;
        let make = |pool| Orders::new(Shop::new(&stage, way, pool), mix);
        costs.push(meter::count(&stage, bench.args.counted, make).await?);
    }
    pool.close().await;
    Ok(costs)
}

/// Runs the entries in turn; `own` is pgonce's row.
pub(crate) async fn compare(
    bench: &Bench<'_>,
    stage: &Stage,
    (scenario, clients, about): (&'static str, u16, &'static str),
    (entries, costs): (&[Entry], &[Cost]),
    own: &'static str,
) -> anyhow::Result<Outcome> {
    // A commit with a lease needs a second connection for a moment.
    let is_leased = entries.iter().any(|(_, way, _)| *way == Way::Leased);
    let connections = if is_leased { (2 * clients).min(300) } else { clients };
    let pool = stage.pool(connections).await?;
    let mut subjects = Vec::new();
    for (&(name, way, mix), &cost) in entries.iter().zip(costs) {
        let orders = ready(stage, &pool, way, mix).await?;
        subjects.push(Subject::new(Row::new(name, cost), orders));
    }
    stage.checkpoint().await?;
    interleave(&mut subjects, clients, bench.rounds(), &Progress::of(scenario)).await?;
    pool.close().await;
    let mut rows: Vec<_> = subjects.into_iter().map(|subject| subject.row).collect();
    for (row, (_, way, _)) in rows.iter_mut().zip(entries) {
        row.doubles = Some(way.doubles(stage).await?);
    }
    Ok(Outcome::new(scenario, clients, about, rows, own))
}

/// Prepares the orders, with the keys that are replayed.
async fn ready(stage: &Stage, pool: &PgPool, way: Way, mix: Mix) -> anyhow::Result<Orders> {
    let orders = Orders::new(Shop::new(stage, way, pool.clone()), mix);
    let known = if mix == Mix::Fresh || way == Way::Bare { 0 } else { KNOWN };
    for number in 0..known {
        orders.shop.order(&key(number)).await?;
    }
    Ok(orders)
}
