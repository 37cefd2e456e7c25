//! kills: a process that takes orders is killed repeatedly with signal 9, and restarted for the keys without an answer,
//! as if their clients retried.

use std::collections::{HashSet, VecDeque};
use std::io::{Read, Write};
use std::process::Stdio;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use pgonce::sqlx::postgres::PgConnectOptions;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::task::JoinSet;

use super::peers::{ALWAYS, EVERY_SECOND};
use crate::Bench;
use crate::arena::Stage;
use crate::figures::{BARE, Cost, HAND_WRITTEN, Outcome, Row};
use crate::orders::{Shop, Way};
use crate::progress::Progress;
use crate::redis_lock::{Fsync, LockedShop, Server};

const ABOUT: &str = "A process with 16 clients is killed with signal 9, 16 times, each time after 1 to 100 answers; \
    then the keys without an answer are retried. Look at the doubles.";
const RUN: &str = "run";
const KILLS: usize = 16;
const CLIENTS: u16 = 16;
/// The maximum of answers before a kill, and the keys per kill: the process never runs out of work.
const ANSWERS_MAX: usize = 100;
const KEYS: usize = 250;
/// A client's pause before it retries a key that another caller has claimed.
const ASK_AGAIN: Duration = Duration::from_millis(20);
/// A client without an answer for this long gives up: more than twice a lock's life.
const GIVE_UP: Duration = Duration::from_secs(5);
const WAIT: Duration = Duration::from_secs(10);
/// The process's input: name, URL, schema and socket, one per line.
const ORDERS: &str = "PGONCE_BENCH_ORDERS";

const CONTENDERS: [(&str, Way, Option<Fsync>); 6] = [
    (BARE, Way::Bare, None),
    (HAND_WRITTEN, Way::HandWritten, None),
    (RUN, Way::Run, None),
    ("run, optimistic", Way::Optimistic, None),
    (EVERY_SECOND, Way::Bare, Some(Fsync::EverySecond)),
    (ALWAYS, Way::Bare, Some(Fsync::Always)),
];

pub(crate) async fn run(bench: &mut Bench<'_>) -> anyhow::Result<()> {
    let progress = Progress::of("kills");
    let (mut rows, mut lost, mut lost_by_pgonce) = (Vec::new(), Vec::new(), 0);
    for (name, way, fsync) in CONTENDERS {
        let stage = bench.arena.stage("kills", 0.0).await?;
        let redis = match fsync {
            Some(fsync) => Some(Server::start(fsync).await?),
            None => None,
        };
        let socket = redis.as_ref().map(Server::socket).unwrap_or_default();
        let orders = format!("{name}\n{}\n{}\n{socket}", bench.url(), stage.schema());
        let answered = progress.during(name.to_owned(), killed(&orders)).await?;
        ended(&stage).await?;
        let mut row = Row::new(name, Cost::default());
        row.doubles = Some(way.doubles(&stage).await?);
        rows.push(row);
        let orders = way.orders_taken(&stage).await?;
        let (open, missing) = (KILLS * KEYS - answered.len(), answered.difference(&orders).count());
        if [Way::Run, Way::Optimistic].contains(&way) {
            lost_by_pgonce += open + missing;
        }
        if open + missing > 0 {
            lost.push(format!(
                "{name}: {open} keys without an answer, {missing} answers without an order."
            ));
        }
    }
    let mut outcome = Outcome::new("kills", CLIENTS, ABOUT, rows, RUN);
    outcome.notes = lost;
    outcome.figures.push(("lost", lost_by_pgonce.into()));
    bench.tell(outcome);
    Ok(())
}

/// Another process that takes orders.
struct Worker {
    child: Child,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Worker {
    async fn start(orders: &str, keys: &[&String]) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.env(ORDERS, orders).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn()?;
        let mut stdin = child.stdin.take().context("no pipe")?;
        for key in keys {
            stdin.write_all(format!("{key}\n").as_bytes()).await?;
        }
        let stdout = child.stdout.take().context("no pipe")?;
        Ok(Self { child, answers: BufReader::new(stdout).lines() })
    }
}

/// Waits until a killed process has no session left: a COMMIT may still be running.
async fn ended(stage: &Stage) -> anyhow::Result<()> {
    let sessions = format!(
        "select count(*) from pg_stat_activity where application_name = '{}'",
        stage.schema()
    );
    while stage.ask::<i64>(&sessions).await? > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// Takes orders through all kills. Returns the keys that got an answer.
async fn killed(orders: &str) -> anyhow::Result<HashSet<String>> {
    let keys: Vec<String> =
        (0..KILLS * KEYS).map(|_| format!("{:034x}", fastrand::u128(..))).collect();
    let mut answered = HashSet::new();
    for kill in 0..=KILLS {
        let mut open: Vec<_> = keys.iter().filter(|key| !answered.contains(*key)).collect();
        fastrand::shuffle(&mut open);
        let mut worker = Worker::start(orders, &open).await?;
        if kill < KILLS {
            for _ in 0..fastrand::usize(1..=ANSWERS_MAX) {
                let key = worker.answers.next_line().await?;
                answered.insert(key.context("the process ended before it was killed")?);
            }
            tokio::time::sleep(Duration::from_micros(fastrand::u64(..3000))).await;
            worker.child.kill().await?;
        }
        // Reads the answers that it wrote before it was killed.
        while let Some(key) = worker.answers.next_line().await? {
            answered.insert(key);
        }
        let status = worker.child.wait().await?;
        ensure!(status.success() == (kill == KILLS), "the process that takes orders: {status}");
    }
    Ok(answered)
}

/// The input, if this is such a process.
pub(crate) fn orders() -> Option<String> {
    std::env::var(ORDERS).ok()
}

/// The other process: reads keys, takes their orders, writes each key once it has its answer.
pub(crate) async fn work(orders: &str) -> anyhow::Result<()> {
    let told: Vec<_> = orders.split('\n').collect();
    let [name, url, schema, socket] = told[..] else { anyhow::bail!("{ORDERS} is malformed") };
    let (_, way, fsync) =
        CONTENDERS.into_iter().find(|(other, ..)| *other == name).context("no such contender")?;
    let mut keys = String::new();
    std::io::stdin().read_to_string(&mut keys)?;
    let queue: VecDeque<String> = keys.lines().map(str::to_owned).collect();
    let queue = Arc::new(Mutex::new(queue));
    let options = PgConnectOptions::from_str(url)?.application_name(schema);
    let stage = Stage::over(schema, options)?;
    let shop = Shop::new(&stage, way, stage.pool(CLIENTS).await?).waiting(WAIT);
    let locked = match fsync {
        Some(_) => Some(LockedShop::open(shop.clone(), socket).await?),
        None => None,
    };
    let client = |_| client(shop.clone(), locked.clone(), Arc::clone(&queue));
    (0..CLIENTS).map(client).collect::<JoinSet<_>>().join_all().await.into_iter().collect()
}

async fn client(
    shop: Shop,
    locked: Option<LockedShop>,
    queue: Arc<Mutex<VecDeque<String>>>,
) -> anyhow::Result<()> {
    let queue = || queue.lock().unwrap_or_else(PoisonError::into_inner);
    let mut deadline = Instant::now() + GIVE_UP;
    while Instant::now() < deadline {
        let Some(key) = queue().pop_front() else { break };
        let answer = match &locked {
            Some(locked) => locked.order(&key).await?,
            None => Some(shop.order(&key).await?),
        };
        if answer.is_some() {
            std::io::stdout().write_all(format!("{key}\n").as_bytes())?;
            deadline = Instant::now() + GIVE_UP;
        } else {
            queue().push_back(key);
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }
    Ok(())
}
