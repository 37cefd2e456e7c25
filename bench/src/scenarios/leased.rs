//! leased: work under a lease.

use crate::Bench;
use crate::compare::{Entry, Mix, compare, costs};
use crate::figures::{BARE, HAND_WRITTEN};
use crate::orders::Way;

const ABOUT: &str = "Every key is new, and its work done under a lease: one commit for the claim, one for the end. \
    Look at run_leased to bare.";
const RUN_LEASED: &str = "run_leased";
const ENTRIES: [Entry; 4] = [
    (BARE, Way::Bare, Mix::Fresh),
    (HAND_WRITTEN, Way::HandWritten, Mix::Fresh),
    ("run", Way::Run, Mix::Fresh),
    (RUN_LEASED, Way::Leased, Mix::Fresh),
];

pub(crate) async fn run(bench: &mut Bench<'_>) -> anyhow::Result<()> {
    let costs = costs(bench, &ENTRIES).await?;
    for clients in bench.args.clients.clone() {
        let stage = bench.stage("leased").await?;
        let head = ("leased", clients, ABOUT);
        let outcome = compare(bench, &stage, head, (&ENTRIES, &costs), RUN_LEASED).await?;
        bench.tell(outcome);
    }
    Ok(())
}
