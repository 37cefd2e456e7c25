//! mixed: one of ten keys has been used before.

use crate::bench::Bench;
use crate::bench::compare::{Entry, Mix, compare, costs};
use crate::bench::figures::{BARE, FLOOR, HAND_WRITTEN};
use crate::bench::orders::Way;
use crate::exit::CliError;

const ABOUT: &str = "One of ten keys was used before. Look at run's ratios, and at the doubles.";
const ENTRIES: [Entry; 4] = [
    (BARE, Way::Bare, Mix::Mixed),
    (HAND_WRITTEN, Way::HandWritten, Mix::Mixed),
    (FLOOR, Way::Floor, Mix::Mixed),
    ("run", Way::Run, Mix::Mixed),
];

pub(in crate::bench) async fn run(bench: &mut Bench<'_>) -> Result<(), CliError> {
    let costs = costs(bench, &ENTRIES).await?;
    for clients in bench.args.clients.clone() {
        let stage = bench.stage("mixed").await?;
        let mut outcome =
            compare(bench, &stage, ("mixed", clients, ABOUT), (&ENTRIES, &costs), "run").await?;
        outcome.aim_at_no_doubles();
        bench.tell(outcome)?;
    }
    Ok(())
}
