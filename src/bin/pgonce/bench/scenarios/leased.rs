//! leased: work under a lease.

use crate::bench::Bench;
use crate::bench::compare::{Entry, Mix, compare, costs};
use crate::bench::figures::{BARE, HAND_WRITTEN};
use crate::bench::orders::Way;
use crate::exit::CliError;

const ABOUT: &str = "Every key is new, and its work done under a lease: one commit for the claim, one for the end. \
    Look at run_leased to bare.";
const RUN_LEASED: &str = "run_leased";
const ENTRIES: [Entry; 4] = [
    (BARE, Way::Bare, Mix::Fresh),
    (HAND_WRITTEN, Way::HandWritten, Mix::Fresh),
    ("run", Way::Run, Mix::Fresh),
    (RUN_LEASED, Way::Leased, Mix::Fresh),
];

pub(in crate::bench) async fn run(bench: &mut Bench<'_>) -> Result<(), CliError> {
    let costs = costs(bench, &ENTRIES).await?;
    for clients in bench.args.clients.clone() {
        let stage = bench.stage("leased").await?;
        let head = ("leased", clients, ABOUT);
        let mut outcome = compare(bench, &stage, head, (&ENTRIES, &costs), RUN_LEASED).await?;
        outcome.aim_at_no_doubles();
        bench.tell(outcome)?;
    }
    Ok(())
}
