//! reap: how fast overdue keys are deleted, and the effect on other work.

use std::time::{Duration, Instant};

use pgonce::Reaper;
use pgonce::sqlx::{self, Connection};

use crate::Bench;
use crate::arena::Stage;
use crate::compare::{Mix, Orders};
use crate::cpu::Cpu;
use crate::figures::{Cost, Disturbed, Outcome, Row, Spread};
use crate::fill::{Copies, fill, model};
use crate::load::{Sample, Subject, WARM_UP, no_latencies};
use crate::orders::{Shop, Way};
use crate::print::grouped;
use crate::progress::Progress;

const ABOUT: &str = "Keys past their retention, deleted over one connection after a checkpoint, so that each page goes \
    into the WAL as a full image. Look at keys per second.";
const PLAIN: &str = "reap";
const OLD_SNAPSHOT: &str = "reap, old snapshot open";
/// Times the keys of other scenarios. With fewer, the table is empty before the batches have grown.
const MORE: u64 = 4;
/// Keys of the storm differ from the reaped ones.
const STORM: u64 = 1 << 34;

pub(crate) async fn run(bench: &mut Bench<'_>) -> anyhow::Result<()> {
    let keys = MORE * bench.args.keys;
    let progress = Progress::of("reap");
    let stage = bench.stage("reap").await?;
    model(&stage, 460).await?;
    let (mut plain, mut held) = (row(PLAIN), row(OLD_SNAPSHOT));
    for _ in 0..bench.args.rounds {
        plain.add(&reap(bench, &stage, &progress).await?);
        let mut old = stage.conn().await?;
        sqlx::raw_sql("begin isolation level repeatable read; select 1").execute(&mut old).await?;
        held.add(&reap(bench, &stage, &progress).await?);
        old.close().await?;
        vacuum(&stage).await?;
    }
    for row in [&mut plain, &mut held] {
        row.latencies = no_latencies(); // one call deletes all keys
    }
    let per_second = plain.rate();
    let mut outcome = Outcome::new("reap", 1, ABOUT, vec![plain, held], PLAIN);
    outcome.notes.push(format!("{} keys per round.", grouped(keys)));
    outcome.figures.push(("keys", keys.into()));
    storm(bench, &stage, &mut outcome, per_second).await?;
    bench.tell(outcome);
    Ok(())
}

fn row(name: &'static str) -> Row {
    Row::new(name, Cost::default())
}

/// Fills the table and times the pass that empties it.
async fn reap(bench: &Bench<'_>, stage: &Stage, progress: &Progress) -> anyhow::Result<Sample> {
    let keys = MORE * bench.args.keys;
    fill(stage, 0..keys, Copies::Overdue, progress).await?;
    stage.checkpoint().await?;
    let mut conn = stage.conn().await?;
    let (began, before) = (Instant::now(), Cpu::now(bench.arena.postmaster));
    let work = async { Ok(Reaper::new(&stage.once).pass(&mut conn).await?) };
    let reaped = progress.during("reaping".to_owned(), work).await?;
    let took = began.elapsed().as_secs_f64();
    if reaped.deleted < keys {
        anyhow::bail!("{} of {keys} overdue keys were deleted", reaped.deleted);
    }
    let cpu = Cpu::now(bench.arena.postmaster).each_since(before, reaped.deleted);
    Ok(Sample { cpu, ..Sample::of_rate(reaped.deleted as f64 / took) })
}

async fn vacuum(stage: &Stage) -> anyhow::Result<()> {
    stage.execute(&mut stage.conn().await?, "vacuum :schema.idempotency_keys").await
}

/// The effect of a busy reaper on a storm of new keys.
async fn storm(
    bench: &Bench<'_>,
    stage: &Stage,
    outcome: &mut Outcome,
    reaped: Option<Spread>,
) -> anyhow::Result<()> {
    let (clients, rounds) = (bench.first_clients(), bench.rounds());
    let keys = MORE * bench.args.keys;
    let progress = Progress::of("reap");
    let pool = stage.pool(clients).await?;
    let storm = Orders::new(Shop::new(stage, Way::Run, pool.clone()), Mix::Fresh).from(STORM);
    let storm = Subject::new(row("storm"), storm);
    storm.work(clients, rounds.each.mul_f64(WARM_UP)).await?;
    let (mut disturbed, mut intake) = (Disturbed::default(), Vec::new());
    for _ in 0..rounds.count {
        fill(stage, 0..keys, Copies::Overdue, &progress).await?;
        stage.checkpoint().await?;
        let alone = storm.work(clients, rounds.each).await?;
        intake.push(alone.per_second);
        disturbed.alone.push(alone.p99_ms());
        // On its own connection, like a service with one to spare.
        let own = stage.pool(1).await?;
        let reaper = Reaper::new(&stage.once).interval(Duration::from_millis(1))?;
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let reaper = tokio::spawn(async move { reaper.run_until(own, stopped).await });
        disturbed.beside.push(storm.work(clients, rounds.each).await?.p99_ms());
        drop(stop);
        reaper.await?;
        Reaper::new(&stage.once).pass(&mut stage.conn().await?).await?;
        vacuum(stage).await?;
    }
    pool.close().await;
    outcome.tell_disturbance("p99 of new keys with a busy reaper to without", &disturbed);
    if let (Some(reaped), Some(intake)) = (reaped, Spread::of(intake.into_iter())) {
        outcome.figures.push(("intake_per_s", intake.high.into()));
        outcome.figures.push(("reaped_to_intake", (reaped.median / intake.high).into()));
    }
    Ok(())
}
