//! kills: a process that takes orders is killed with signal 9 again and again, and started again for the keys that have
//! no answer, as their clients would ask again.

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

const ABOUT: &str = "A process with 16 clients is killed with signal 9, 16 times, each time after 1 to 100 answers, and \
    the keys without an answer are asked for again. Look at the doubles.";
const RUN: &str = "run";
const KILLS: usize = 16;
const CLIENTS: u16 = 16;
/// The most answers that are waited for before a kill, and keys per kill: it never runs out of work before.
const ANSWERS_MAX: usize = 100;
const KEYS: usize = 250;
/// A client waits so long before it asks again for a key that another one was at,
const ASK_AGAIN: Duration = Duration::from_millis(20);
/// and gives up when it has had no answer for so long: more than twice a lock's life.
const GIVE_UP: Duration = Duration::from_secs(5);
const WAIT: Duration = Duration::from_secs(10);
/// What the process is given: name, URL, schema and socket, a line each.
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

/// Another process, working.
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

/// Waits until no session of a killed process is left: it may still be in its COMMIT.
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

/// Takes orders through all kills; the keys that have an answer then.
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
                answered.insert(key.context("it has ended before it was killed")?);
            }
            tokio::time::sleep(Duration::from_micros(fastrand::u64(..3000))).await;
            worker.child.kill().await?;
        }
        // What it said before it died, has been said.
        while let Some(key) = worker.answers.next_line().await? {
            answered.insert(key);
        }
        let status = worker.child.wait().await?;
        ensure!(status.success() == (kill == KILLS), "the process that takes orders: {status}");
    }
    Ok(answered)
}

/// What to do in such a process, if this is one.
pub(crate) fn orders() -> Option<String> {
    std::env::var(ORDERS).ok()
}

/// The other process: reads keys, takes their orders, writes each key when it has its answer.
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
