//! mixed: one key in ten was used before.

use crate::Bench;
use crate::compare::{Entry, Mix, compare, costs};
use crate::figures::{BARE, HAND_WRITTEN};
use crate::orders::Way;

const ABOUT: &str = "One key in ten was used before. Look at run's ratios, and at the doubles.";
const ENTRIES: [Entry; 3] = [
    (BARE, Way::Bare, Mix::Mixed),
    (HAND_WRITTEN, Way::HandWritten, Mix::Mixed),
    ("run", Way::Run, Mix::Mixed),
];

pub(crate) async fn run(bench: &mut Bench<'_>) -> anyhow::Result<()> {
    let costs = costs(bench, &ENTRIES).await?;
    for clients in bench.args.clients.clone() {
        let stage = bench.stage("mixed").await?;
        let outcome =
            compare(bench, &stage, ("mixed", clients, ABOUT), (&ENTRIES, &costs), "run").await?;
        bench.tell(outcome);
    }
    Ok(())
}
