//! inbox: messages one by one and in batches.

use pgonce::sqlx::PgPool;
use pgonce::{Inbox, Received};

use crate::Bench;
use crate::figures::{Outcome, Row};
use crate::load::{Fault, Subject, Work, interleave};
use crate::meter;
use crate::orders::key;
use crate::progress::Progress;

const ABOUT: &str = "Messages without work, one transaction per batch; times are per batch. \
    Look at the messages per second of batches of 100.";
const ONE_BY_ONE: &str = "one by one";
const OWN: &str = "batches of 100";
/// Name, messages per batch, and how many of them were received before.
const VARIANTS: [(&str, u32, u32); 6] = [
    (ONE_BY_ONE, 1, 0),
    ("batches of 10", 10, 0),
    (OWN, 100, 0),
    ("batches of 1,000", 1000, 0),
    ("batches of 100, half are seen", 100, 50),
    ("batches of 100, all are seen", 100, 100),
];

/// Receives a batch of messages without work, in a transaction.
struct Batches {
    inbox: Inbox,
    pool: PgPool,
    size: u32,
    seen: u32,
}

impl Batches {
    fn id(&self, number: u64) -> String {
        format!("{}-{} {}", self.size, self.seen, key(number))
    }

    /// Receives the messages that are sent again later.
    async fn receive_seen(&self) -> anyhow::Result<()> {
        let ids: Vec<_> = (0..u64::from(self.seen)).map(|number| self.id(number)).collect();
        let mut tx = self.pool.begin().await?;
        self.inbox.receive_many(&mut tx, &ids).await?;
        Ok(tx.commit().await?)
    }
}

impl Work for Batches {
    async fn perform(&self, number: u64) -> Result<(), Fault> {
        let (size, seen) = (u64::from(self.size), u64::from(self.seen));
        let new = (number + 1) * size + seen..(number + 2) * size;
        let ids: Vec<_> = (0..seen).chain(new).map(|number| self.id(number)).collect();
        let mut tx = self.pool.begin().await?;
        let received = match ids.as_slice() {
            [id] => vec![self.inbox.receive(&mut tx, id).await?],
            ids => self.inbox.receive_many(&mut tx, ids).await?,
        };
        tx.commit().await?;
        let new = received.iter().filter(|received| matches!(received, Received::New(_))).count();
        anyhow::ensure!(new == (self.size - self.seen) as usize, "{new} messages were new");
        Ok(())
    }
}

pub(crate) async fn run(bench: &mut Bench<'_>) -> anyhow::Result<()> {
    let stage = bench.stage("inbox").await?;
    let pool = stage.pool(1).await?;
    let inbox = Inbox::new(&stage.once, "bench")?;
    let mut subjects = Vec::new();
    for (name, size, seen) in VARIANTS {
        let make = |pool| Batches { inbox: inbox.clone(), pool, size, seen };
        make(pool.clone()).receive_seen().await?;
        let mut cost = meter::count(&stage, bench.args.counted.div_ceil(size), make).await?;
        for figure in
            [&mut cost.round_trips, &mut cost.wal_bytes, &mut cost.dead_rows, &mut cost.xids]
        {
            *figure = figure.map(|total| total / f64::from(size));
        }
        subjects.push(Subject::new(Row::new(name, cost).of(size), make(pool.clone())));
    }
    stage.checkpoint().await?;
    interleave(&mut subjects, 1, bench.rounds(), &Progress::of("inbox")).await?;
    pool.close().await;
    let rows = subjects.into_iter().map(|subject| subject.row).collect();
    let mut outcome = Outcome::new("inbox", 1, ABOUT, rows, OWN);
    if let Some(ratio) = outcome.ratio_of(OWN, ONE_BY_ONE) {
        outcome.figures.push(("ratio_to_one_by_one", ratio.median.into()));
        outcome.notes.push(format!("Batches of 100 to one by one: {ratio}."));
    }
    bench.tell(outcome);
    Ok(())
}
