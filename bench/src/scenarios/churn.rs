//! churn: a table whose keys are replaced. Does its size stay the same?

use std::time::{Duration, Instant};

use pgonce::sqlx::{self, PgPool};
use pgonce::{Begin, Operation, Policy, Response};

use crate::Bench;
use crate::arena::Stage;
use crate::figures::{Cost, Outcome, Row};
use crate::fill::{Copies, fill, model};
use crate::load::Sample;
use crate::orders::{SCOPE, fingerprint, key};
use crate::plot::Growth;
use crate::print::{grouped, megabytes};
use crate::progress::Progress;

const ABOUT: &str =
    "All keys of a table are replaced repeatedly. Look at its size after each turnover.";
/// A turnover has this many parts, each followed by a vacuum, as autovacuum would by row count.
const PARTS: u64 = 10;
/// One key in this many is begun and completed by the verbs, whose second write can be HOT.
const BY_VERBS: u64 = 200;
/// The turnover with which later ones are compared.
const SETTLED: usize = 3;
const REAP_BATCH: u32 = 10_000;
/// Keys of the verbs differ from the filled-in ones.
const VERBS: u64 = 1 << 35;

pub(crate) async fn run(bench: &mut Bench<'_>) -> anyhow::Result<()> {
    let (keys, progress) = (bench.args.keys, Progress::of("churn"));
    let stage = bench.stage("churn").await?;
    let pool = stage.pool(1).await?;
    model(&stage, 460).await?;
    fill(&stage, 0..keys, Copies::Overdue, &progress).await?;
    let mut row = Row::new("churn", Cost::default());
    let mut sizes = Vec::new();
    let mut next = keys;
    for _ in 0..bench.args.turnovers {
        let began = Instant::now();
        for _ in 0..PARTS {
            replace(&stage, &pool, next..next + keys / PARTS, &progress).await?;
            next += keys / PARTS;
        }
        let per_second = keys as f64 / began.elapsed().as_secs_f64();
        row.add(&Sample::of_rate(per_second));
        sizes.push(size(&stage).await?);
    }
    let hot = hot_ratio(&stage, &pool).await?;
    pool.close().await;
    let mut outcome = Outcome::new("churn", 1, ABOUT, vec![row], "churn");
    let (settled, last) = (sizes[SETTLED - 1], sizes[sizes.len() - 1]);
    let largest = sizes.iter().skip(SETTLED).max().copied();
    outcome.notes.push(format!(
        "{} keys; table and indexes: {} after turnover {SETTLED}, {} after the last.",
        grouped(keys),
        megabytes(settled),
        megabytes(last)
    ));
    outcome.figures.extend([
        ("keys", keys.into()),
        ("bytes_after_turnover", sizes.clone().into()),
        ("hot_share", hot.into()),
    ]);
    let line = sizes.iter().enumerate().map(|(at, &bytes)| (at as f64 + 1.0, bytes as f64 / 1e6));
    outcome.growth = Some(Growth {
        x: "turnovers",
        y: "MB, table and indexes",
        lines: vec![("size", line.collect())],
    });
    let growth = largest.map(|largest| largest as f64 / settled as f64);
    outcome.figures.push(("growth", growth.into()));
    bench.tell(outcome);
    Ok(())
}

/// Adds keys, and deletes as many of the oldest.
async fn replace(
    stage: &Stage,
    pool: &PgPool,
    numbers: std::ops::Range<u64>,
    progress: &Progress,
) -> anyhow::Result<()> {
    let count = numbers.end - numbers.start;
    let by_verbs = count / BY_VERBS;
    fill(stage, numbers.start..numbers.end - by_verbs, Copies::Overdue, progress).await?;
    for number in numbers.end - by_verbs..numbers.end {
        let op = Operation::new(SCOPE, key(VERBS + number))?
            .fingerprint(fingerprint())
            .policy(Policy::new().retention(Duration::from_millis(1))?);
        let mut tx = pool.begin().await?;
        if let Begin::Started(claim) = stage.once.begin(&mut tx, &op).await? {
            claim.complete(&mut tx, Response::bytes("y".repeat(460))).await?;
        }
        tx.commit().await?;
    }
    let mut conn = stage.conn().await?;
    let mut left = count;
    while left > 0 {
        let batch = u32::try_from(left).unwrap_or(u32::MAX).min(REAP_BATCH);
        let reaped = stage.once.reap_once(&mut conn, batch).await?;
        if reaped.deleted == 0 {
            anyhow::bail!("the reaper found no key");
        }
        left -= reaped.deleted;
    }
    stage.execute(&mut conn, "vacuum :schema.idempotency_keys").await
}

async fn size(stage: &Stage) -> anyhow::Result<u64> {
    let sql = "select pg_total_relation_size(':schema.idempotency_keys')";
    Ok(stage.ask::<i64>(sql).await?.unsigned_abs())
}

/// The share of HOT updates; `None` without updates.
async fn hot_ratio(stage: &Stage, pool: &PgPool) -> anyhow::Result<Option<f64>> {
    // Publishes this session's statistics now rather than within a second (PostgreSQL 15).
    let flush = "select pg_stat_force_next_flush()";
    if sqlx::query(flush).execute(pool).await.is_err() {
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    let sql = "select (n_tup_hot_upd::float8 / nullif(n_tup_upd, 0)) from pg_stat_user_tables
        where relid = ':schema.idempotency_keys'::regclass";
    stage.ask(sql).await
}
