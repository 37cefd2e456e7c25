//! replay: every key was used before.

use crate::Bench;
use crate::compare::{Entry, Mix, compare, costs};
use crate::figures::{BARE, HAND_WRITTEN};
use crate::orders::Way;

const ABOUT: &str =
    "Every key was used before; bare takes the order again. Compare run with run, fresh.";
const RUN: &str = "run";
/// `run` with new keys, in turn with the replays.
const RUN_FRESH: &str = "run, fresh";
const ENTRIES: [Entry; 4] = [
    (BARE, Way::Bare, Mix::Replay),
    (HAND_WRITTEN, Way::HandWritten, Mix::Replay),
    (RUN, Way::Run, Mix::Replay),
    (RUN_FRESH, Way::Run, Mix::Fresh),
];

pub(crate) async fn run(bench: &mut Bench<'_>) -> anyhow::Result<()> {
    let costs = costs(bench, &ENTRIES).await?;
    for clients in bench.args.clients.clone() {
        let stage = bench.stage("replay").await?;
        let outcome =
            compare(bench, &stage, ("replay", clients, ABOUT), (&ENTRIES, &costs), RUN).await?;
        bench.tell(outcome);
    }
    Ok(())
}
