//! hot: sixteen callers at once on one key.

use std::sync::Arc;
use std::time::Duration;

use pgonce::sqlx::{Connection, PgPool};
use pgonce::{Begin, Operation, PgOnce, RunError};
use tokio::task::JoinSet;

use crate::Bench;
use crate::arena::Stage;
use crate::compare::{Mix, Orders};
use crate::figures::{BARE, Cost, Disturbed, HAND_WRITTEN, Outcome, Row};
use crate::load::{Fault, Subject, WARM_UP, Work, interleave};
use crate::meter;
use crate::orders::{SCOPE, Shop, Way, key};
use crate::progress::Progress;

const ABOUT: &str = "Sixteen calls at once on one key; all get the response (bare: one order per call). Times end with \
    the last response. In `run`, the calls share a PgOnce, as in one process, and wait for each other there. In `run, \
    apart`, each has its own, as in sixteen processes, and waits in the database. Look at run to hand-written.";
const RUN: &str = "run";
const APART: &str = "run, apart";
/// Name, protection, and how many calls share a `PgOnce`.
const WAYS: [(&str, Way, u16); 6] = [
    (BARE, Way::Bare, AT_ONCE),
    (HAND_WRITTEN, Way::HandWritten, AT_ONCE),
    (RUN, Way::Run, AT_ONCE),
    (APART, Way::Run, 1),
    ("run, optimistic", Way::Optimistic, AT_ONCE),
    ("run, optimistic, apart", Way::Optimistic, 1),
];
const AT_ONCE: u16 = 16;
const WAIT: Duration = Duration::from_secs(20);
/// The key whose claim is live all the time.
const TAKEN: &str = "taken";
/// The pause between an "in progress" answer and the next request, like an impatient client.
const ASK_AGAIN: Duration = Duration::from_millis(20);
/// The size of each variant's range of keys. The range of the other keys is the last.
const KEYS: u64 = 1 << 32;

/// Sends one request sixteen times at once and waits for all responses.
struct Volley {
    /// One for all calls, or one per call.
    shops: Vec<Shop>,
    first: u64,
}

impl Work for Volley {
    async fn perform(&self, number: u64) -> Result<(), Fault> {
        let key: Arc<str> = key(self.first + number).into();
        let mut requests = JoinSet::new();
        for shop in self.shops.iter().cycle().take(AT_ONCE.into()) {
            let (shop, key) = (shop.clone(), Arc::clone(&key));
            requests.spawn(async move { shop.order(&key).await });
        }
        while let Some(answered) = requests.join_next().await {
            answered??;
        }
        Ok(())
    }
}

/// Calls with a key that another caller has claimed, and gets "in progress".
struct Loser {
    once: PgOnce,
    pool: PgPool,
}

impl Work for Loser {
    async fn perform(&self, _: u64) -> Result<(), Fault> {
        let op = Operation::new(SCOPE, TAKEN)?;
        match self.once.run(&self.pool, &op, async |_| Ok::<_, Fault>(())).await {
            Err(RunError::InProgress(_)) => Ok(()),
            Err(error) => Err(error.into()),
            Ok(_) => Err(anyhow::anyhow!("the claimed key ran")),
        }
    }
}

pub(crate) async fn run(bench: &mut Bench<'_>) -> anyhow::Result<()> {
    let stage = bench.stage("hot").await?;
    let pool = stage.pool(AT_ONCE).await?;
    let mut subjects = Vec::new();
    for (number, (name, way, together)) in (0..).zip(WAYS) {
        let mut volley = Volley { shops: Vec::new(), first: number * KEYS };
        for _ in 0..AT_ONCE / together {
            volley.shops.push(Shop::new(&stage.apart()?, way, pool.clone()).waiting(WAIT));
        }
        subjects.push(Subject::new(Row::new(name, Cost::default()).of(AT_ONCE.into()), volley));
    }
    // One volley after the other; each is sixteen clients.
    interleave(&mut subjects, 1, bench.rounds(), &Progress::of("hot")).await?;
    pool.close().await;
    let mut rows: Vec<_> = subjects.into_iter().map(|subject| subject.row).collect();
    for (row, (_, way, _)) in rows.iter_mut().zip(WAYS) {
        row.doubles = Some(way.doubles(&stage).await?);
    }
    let mut outcome = Outcome::new("hot", AT_ONCE, ABOUT, rows, RUN);
    refused(bench, &stage, &mut outcome).await?;
    bench.tell(outcome);
    Ok(())
}

/// The cost of duplicates that get "in progress" at once, and their effect on other keys.
async fn refused(bench: &Bench<'_>, stage: &Stage, outcome: &mut Outcome) -> anyhow::Result<()> {
    let mut conn = stage.conn().await?;
    let mut holder = conn.begin().await?;
    let claimed = stage.once.begin(&mut holder, &Operation::new(SCOPE, TAKEN)?).await?;
    if !matches!(claimed, Begin::Started(_)) {
        anyhow::bail!("the key to claim is already in use");
    }
    let once = stage.once.clone();
    let cost = meter::count(stage, bench.args.counted, |pool| Loser { once, pool }).await?;
    outcome.figures.extend([
        ("refused_round_trips", cost.round_trips.into()),
        ("refused_wal_bytes", cost.wal_bytes.into()),
    ]);
    let hammered = hammered(bench, stage).await?;
    outcome.tell_disturbance("p99 of other keys with 16 refused duplicates to without", &hammered);
    holder.rollback().await?;
    Ok(())
}

/// The p99 of other keys, alone and while sixteen callers ask for the claimed key.
async fn hammered(bench: &Bench<'_>, stage: &Stage) -> anyhow::Result<Disturbed> {
    let (clients, rounds) = (bench.first_clients(), bench.rounds());
    let (pool, duplicates) = (stage.pool(clients).await?, stage.pool(AT_ONCE).await?);
    let others = Orders::new(Shop::new(stage, Way::Run, pool.clone()), Mix::Fresh)
        .from(WAYS.len() as u64 * KEYS);
    let others = Subject::new(Row::new("other keys", Cost::default()), others);
    let loser = Arc::new(Loser { once: stage.once.clone(), pool: duplicates.clone() });
    let mut disturbed = Disturbed::default();
    let bar = Progress::of("hot").steps(2 * u64::from(rounds.count));
    others.work(clients, rounds.each.mul_f64(WARM_UP)).await?;
    for _ in 0..rounds.count {
        bar.say("other keys");
        disturbed.alone.push(others.work(clients, rounds.each).await?.p99_ms());
        bar.step();
        bar.say("other keys, under load");
        let hammering = hammer(&loser);
        disturbed.beside.push(others.work(clients, rounds.each).await?.p99_ms());
        drop(hammering);
        bar.step();
    }
    pool.close().await;
    duplicates.close().await;
    Ok(disturbed)
}

/// Sixteen tasks that ask for the claimed key until dropped.
fn hammer(loser: &Arc<Loser>) -> JoinSet<()> {
    let mut asking = JoinSet::new();
    for _ in 0..AT_ONCE {
        let loser = Arc::clone(loser);
        asking.spawn(async move {
            // A failed request is one duplicate less; the others continue.
            loop {
                if let Err(error) = loser.perform(0).await {
                    tracing::warn!(error = format!("{error:#}"), "a duplicate failed");
                }
                tokio::time::sleep(ASK_AGAIN).await;
            }
        });
    }
    asking
}
