//! leased: work under a lease.

use std::time::Duration;

use pgonce::sqlx::PgPool;
use pgonce::{Begin, Failure, Lease, Operation, PgOnce, Response, Work as LeasedWork};

use crate::Bench;
use crate::arena::Stage;
use crate::compare::{Entry, Mix, compare, costs};
use crate::figures::{BARE, Cost, HAND_WRITTEN, Outcome, Row};
use crate::load::{Fault, Work};
use crate::meter;
use crate::orders::{SCOPE, Way, fingerprint, key};

const ABOUT: &str = "Every key is new, with work under a lease: one commit for the claim, one for the end. \
    Look at run_leased to bare.";
const RUN_LEASED: &str = "run_leased";
const ENTRIES: [Entry; 4] = [
    (BARE, Way::Bare, Mix::Fresh),
    (HAND_WRITTEN, Way::HandWritten, Mix::Fresh),
    ("run", Way::Run, Mix::Fresh),
    (RUN_LEASED, Way::Leased, Mix::Fresh),
];

const ABOUT_PARTS: &str = "Counted costs: of run_leased whose work only returns its value, and of each addition. \
    Values have 460 bytes, outputs and progress 100.";
const PLAIN: &str = "run_leased";
/// How often a part is added, to measure the share of one.
const TIMES: usize = 4;
const NAMES: [&str; TIMES] = ["step 1", "step 2", "step 3", "step 4"];
const PARTS: [(&str, Part); 4] = [
    ("each step more", Part::Step),
    ("each step_tx more, without its own writes", Part::StepTx),
    ("each progress more", Part::Progress),
    ("each renewal of the lease more", Part::Renewal),
];
const LEASE: Duration = Duration::from_secs(600);

#[derive(Clone, Copy, PartialEq)]
enum Part {
    Nothing,
    Step,
    StepTx,
    Progress,
    Renewal,
    Replay,
}

/// `run_leased` with one part repeated four times.
struct Parts {
    once: PgOnce,
    pool: PgPool,
    part: Part,
}

impl Parts {
    fn operation(&self, number: u64) -> pgonce::Result<Operation> {
        let key = match self.part {
            Part::Replay => "replayed".to_owned(),
            part => format!("{} {}", part as u8, key(number)),
        };
        Ok(Operation::new(SCOPE, key)?.fingerprint(fingerprint()))
    }

    async fn run(&self, op: &Operation) -> Result<(), Fault> {
        let work = async |work: &mut LeasedWork| {
            for name in NAMES {
                match self.part {
                    Part::Step => {
                        work.step(name, async || Ok::<_, Failure>(value(100))).await?;
                    }
                    Part::StepTx => {
                        work.step_tx(name, async |_| Ok::<_, Failure>(value(100))).await?;
                    }
                    Part::Progress => work.progress(&value(100)).await?,
                    Part::Nothing | Part::Renewal | Part::Replay => {}
                }
            }
            Ok::<_, Failure>(value(460))
        };
        self.once.run_leased(&self.pool, op, Lease::new(LEASE)?, work).await?;
        Ok(())
    }

    /// Renews by explicit calls, because `run_leased` renews by time.
    async fn renew(&self, op: &Operation) -> Result<(), Fault> {
        let Begin::Started(mut claim) =
            self.once.begin_leased(&self.pool, op, Lease::new(LEASE)?).await?
        else {
            anyhow::bail!("a new key is not new");
        };
        for _ in NAMES {
            claim.extend(&self.pool, Lease::new(LEASE)?).await?;
        }
        claim.complete_leased(&self.pool, Response::json(&value(460))?).await?;
        Ok(())
    }
}

impl Work for Parts {
    async fn perform(&self, number: u64) -> Result<(), Fault> {
        let op = self.operation(number)?;
        match self.part {
            Part::Renewal => self.renew(&op).await,
            _ => self.run(&op).await,
        }
    }
}

/// A value of this many bytes as JSON.
fn value(bytes: usize) -> String {
    "y".repeat(bytes - 2)
}

pub(crate) async fn run(bench: &mut Bench<'_>) -> anyhow::Result<()> {
    let entry_costs = costs(bench, &ENTRIES).await?;
    for clients in bench.args.clients.clone() {
        let stage = bench.stage("leased").await?;
        let head = ("leased", clients, ABOUT);
        let outcome = compare(bench, &stage, head, (&ENTRIES, &entry_costs), RUN_LEASED).await?;
        bench.tell(outcome);
    }
    let stage = bench.arena.stage("parts", 0.0).await?;
    let plain = cost(bench, &stage, Part::Nothing).await?;
    let mut rows = vec![Row::new(PLAIN, plain)];
    for (name, part) in PARTS {
        let added = cost(bench, &stage, part).await?.each_beyond(plain, TIMES);
        rows.push(Row::new(name, added));
    }
    rows.push(Row::new("a replay", cost(bench, &stage, Part::Replay).await?));
    bench.tell(Outcome::new("parts of leased work", 1, ABOUT_PARTS, rows, PLAIN));
    Ok(())
}

async fn cost(bench: &Bench<'_>, stage: &Stage, part: Part) -> anyhow::Result<Cost> {
    let once = stage.once.clone();
    meter::count(stage, bench.args.counted, |pool| Parts { once, pool, part }).await
}
