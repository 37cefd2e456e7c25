//! inbox: messages one by one, and in batches.

use pgonce::sqlx::PgPool;
use pgonce::{Inbox, Received};

use crate::Bench;
use crate::figures::{Outcome, Row};
use crate::load::{Fault, Subject, Work, interleave};
use crate::meter;
use crate::orders::key;
use crate::progress::Progress;

const ABOUT: &str = "New messages without work, a transaction for each batch; times are a batch's. \
    Look at the messages per second of batches of 100.";
const ONE_BY_ONE: &str = "one by one";
const OWN: &str = "batches of 100";
const SIZES: [(&str, u32); 4] =
    [(ONE_BY_ONE, 1), ("batches of 10", 10), (OWN, 100), ("batches of 1,000", 1000)];

/// Receives a batch of new messages that have no work, in a transaction.
struct Batches {
    inbox: Inbox,
    pool: PgPool,
    size: u32,
}

impl Work for Batches {
    async fn perform(&self, number: u64) -> Result<(), Fault> {
        let size = u64::from(self.size);
        let numbers = number * size..(number + 1) * size;
        let ids: Vec<_> = numbers.map(|number| format!("{size} {}", key(number))).collect();
        let mut tx = self.pool.begin().await?;
        let received = match ids.as_slice() {
            [id] => vec![self.inbox.receive(&mut tx, id).await?],
            ids => self.inbox.receive_many(&mut tx, ids).await?,
        };
        tx.commit().await?;
        match received.iter().all(|received| matches!(received, Received::New(_))) {
            true => Ok(()),
            false => Err(anyhow::anyhow!("a new message was not taken for new")),
        }
    }
}

pub(crate) async fn run(bench: &mut Bench<'_>) -> anyhow::Result<()> {
    let stage = bench.stage("inbox").await?;
    let pool = stage.pool(1).await?;
    let inbox = Inbox::new(&stage.once, "bench")?;
    let mut subjects = Vec::new();
    for (name, size) in SIZES {
        let make = |pool| Batches { inbox: inbox.clone(), pool, size };
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
