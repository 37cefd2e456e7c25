//! replay: every key has been used before.

use crate::bench::Bench;
use crate::bench::compare::{Entry, Mix, compare, costs};
use crate::bench::figures::{BARE, Cost, FLOOR, HAND_WRITTEN};
use crate::bench::orders::Way;
use crate::exit::CliError;

const ABOUT: &str =
    "Every key was used before; bare takes the order again. Look at run's rate against run, fresh.";
const RUN: &str = "run";
/// `run` with new keys, between replays.
const RUN_FRESH: &str = "run, fresh";
const ENTRIES: [Entry; 5] = [
    (BARE, Way::Bare, Mix::Replay),
    (HAND_WRITTEN, Way::HandWritten, Mix::Replay),
    (FLOOR, Way::Floor, Mix::Replay),
    (RUN, Way::Run, Mix::Replay),
    (RUN_FRESH, Way::Run, Mix::Fresh),
];

pub(in crate::bench) async fn run(bench: &mut Bench<'_>) -> Result<(), CliError> {
    let costs = costs(bench, &ENTRIES).await?;
    for clients in bench.args.clients.clone() {
        let stage = bench.stage("replay").await?;
        let mut outcome =
            compare(bench, &stage, ("replay", clients, ABOUT), (&ENTRIES, &costs), RUN).await?;
        outcome.aim_at_no_doubles();
        let (to_bare, to_hand) = (outcome.ratio_of(RUN, BARE), outcome.ratio_of(RUN, HAND_WRITTEN));
        if clients < 32 {
            outcome.at_least("throughput of replays to bare", 1.9, to_bare);
        }
        outcome.at_least("throughput of replays to hand-written", 1.05, to_hand);
        if clients == bench.first_clients() {
            let cost = outcome.row(RUN).map_or(Cost::default(), |row| row.cost);
            outcome.at_most("round trips of a replay", 2.0, cost.round_trips);
            outcome.at_most("WAL bytes of a replay", 0.0, cost.wal_bytes);
            outcome.at_most("transaction ids of a replay", 0.0, cost.xids);
        }
        bench.tell(outcome)?;
    }
    Ok(())
}
