//! scale: a large table against a small one.

use pgonce::sqlx::PgPool;

use crate::Bench;
use crate::arena::Stage;
use crate::figures::{Cost, Outcome, Row, Spread};
use crate::fill::{Copies, fill, model};
use crate::load::{Fault, Subject, Work, interleave};
use crate::orders::{Shop, Way, key};
use crate::plot::Growth;
use crate::print::grouped;
use crate::progress::Progress;

const ABOUT: &str = "run over a small and a large table. Look at large to small.";
/// How many times as many keys the large table has.
const LARGER: u64 = 50;
const FRESH_SMALL: &str = "fresh, small";
const FRESH_LARGE: &str = "fresh, large";
const REPLAY_SMALL: &str = "replay, small";
const REPLAY_LARGE: &str = "replay, large";
/// Names of the figures, and bytes of the response.
const RESPONSES: [(&str, &str, usize); 2] = [
    ("heap_bytes_per_key_0", "index_bytes_per_key_0", 0),
    ("heap_bytes_per_key_500", "index_bytes_per_key_500", 500),
];
/// Spreads consecutive numbers over all keys.
const STRIDE: u64 = 0x9E37_79B9_7F4A_7C15;

/// `run` over a table with the keys of the numbers below `keys`.
struct Sized {
    shop: Shop,
    keys: u64,
    replays: bool,
}

impl Work for Sized {
    async fn perform(&self, number: u64) -> Result<(), Fault> {
        let number = match self.replays {
            true => number.wrapping_mul(STRIDE) % self.keys,
            false => self.keys + number,
        };
        self.shop.order(&key(number)).await.map(drop)
    }
}

pub(crate) async fn run(bench: &mut Bench<'_>) -> anyhow::Result<()> {
    let (small, large) = (bench.args.keys, bench.args.keys * LARGER);
    let mut figures = vec![("keys_small", small.into()), ("keys_large", large.into())];
    let (few, many) = (grouped(small), grouped(large));
    let mut notes = vec![format!("Small: {few} keys; large: {many}.")];
    for (heap_name, index_name, bytes) in RESPONSES {
        let stage = filled(bench, "bytes", bench.args.keys, bytes).await?;
        let (heap, index) = bytes_per_key(&stage).await?;
        figures.extend([(heap_name, heap.into()), (index_name, index.into())]);
        notes.push(format!(
            "A key with a response of {bytes} bytes takes {heap:.0} bytes in the table and {index:.0} in indexes."
        ));
    }
    let bytes = bench.args.response_bytes as usize;
    let small = filled(bench, "small", small, bytes).await?;
    let large = filled(bench, "large", large, bytes).await?;
    for clients in bench.args.clients.clone() {
        let mut outcome = measure(bench, &small, &large, clients).await?;
        outcome.figures.extend(figures.clone());
        outcome.notes.extend(notes.clone());
        bench.tell(outcome);
    }
    Ok(())
}

/// A vacuumed stage with this many finished keys.
async fn filled(
    bench: &Bench<'_>,
    name: &str,
    keys: u64,
    response_bytes: usize,
) -> anyhow::Result<Stage> {
    let progress = Progress::of("scale");
    let stage = bench.stage(name).await?;
    model(&stage, response_bytes).await?;
    fill(&stage, 0..keys, Copies::Live, &progress).await?;
    let vacuum = async {
        let mut conn = stage.conn().await?;
        stage.execute(&mut conn, "vacuum analyze :schema.idempotency_keys").await
    };
    progress.during("vacuum".to_owned(), vacuum).await?;
    stage.checkpoint().await?;
    Ok(stage)
}

async fn measure(
    bench: &Bench<'_>,
    small: &Stage,
    large: &Stage,
    clients: u16,
) -> anyhow::Result<Outcome> {
    let (keys_small, keys_large) = (bench.args.keys, bench.args.keys * LARGER);
    let pools = (small.pool(clients).await?, large.pool(clients).await?);
    let subject = |name, stage: &Stage, pool: &PgPool, keys, replays| {
        // Each number of clients has its own keys: the former ones are no longer new.
        let keys = if replays { keys } else { keys + (u64::from(clients) << 40) };
        let shop = Shop::new(stage, Way::Run, pool.clone());
        Subject::new(Row::new(name, Cost::default()), Sized { shop, keys, replays })
    };
    let mut subjects = vec![
        subject(FRESH_SMALL, small, &pools.0, keys_small, false),
        subject(FRESH_LARGE, large, &pools.1, keys_large, false),
        subject(REPLAY_SMALL, small, &pools.0, keys_small, true),
        subject(REPLAY_LARGE, large, &pools.1, keys_large, true),
    ];
    interleave(&mut subjects, clients, bench.rounds(), &Progress::of("scale")).await?;
    pools.0.close().await;
    pools.1.close().await;
    let rows = subjects.into_iter().map(|subject| subject.row).collect();
    let mut outcome = Outcome::new("scale", clients, ABOUT, rows, FRESH_LARGE);
    let fresh = outcome.ratio_of(FRESH_LARGE, FRESH_SMALL);
    let replay = outcome.ratio_of(REPLAY_LARGE, REPLAY_SMALL);
    for (name, ratio) in [("fresh", fresh), ("replay", replay)] {
        outcome.notes.extend(ratio.map(|ratio| format!("{name}, large to small: {ratio}.")));
    }
    let line = |ratio: Option<Spread>| {
        let large = ratio.map(|ratio| (keys_large as f64, ratio.median));
        [(keys_small as f64, 1.0)].into_iter().chain(large).collect()
    };
    outcome.growth = Some(Growth {
        x: "keys",
        y: "throughput, small table = 1",
        lines: vec![("fresh", line(fresh)), ("replay", line(replay))],
    });
    Ok(outcome)
}

/// Bytes of heap and of indexes per key.
async fn bytes_per_key(stage: &Stage) -> anyhow::Result<(f64, f64)> {
    let bytes = |function: &str| {
        format!(
            "select {function}(':schema.idempotency_keys')::float8 / count(*) from :schema.idempotency_keys"
        )
    };
    Ok((stage.ask(&bytes("pg_table_size")).await?, stage.ask(&bytes("pg_indexes_size")).await?))
}
