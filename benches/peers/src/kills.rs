//! Doubles and losses: a process that pays for many keys is killed with signal 9 again and again, and started
//! again for the keys that nobody has got an answer for, as their clients would ask again.

use std::collections::{HashMap, VecDeque};
use std::io::{Read, Write};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::task::JoinSet;

use crate::payment::Payment;
use crate::peer::Peer;
use crate::servers::{Addresses, Services};
use crate::speed::random_key;

/// What the sessions of the process are called.
const NAME: &str = "peers-child";
const CLIENTS: u32 = 16;
/// The most answers that are waited for before a kill, and keys per kill: it never runs out of work before.
const ANSWERS_MAX: usize = 100;
const KEYS: usize = 250;
/// A client waits so long before it asks again for a key that somebody was at,
const ASK_AGAIN: Duration = Duration::from_millis(20);
/// and gives up when it has got no answer for so long: more than twice a lock's life.
const GIVE_UP: Duration = Duration::from_secs(5);

/// What the tables say in the end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Losses {
    /// Second payments.
    pub(crate) doubles: i64,
    /// Keys that could not be done any more.
    pub(crate) stuck: i64,
    /// Answers about payments that are not there.
    pub(crate) missing: i64,
}

impl Losses {
    pub(crate) fn is_none(self) -> bool {
        self.doubles + self.stuck + self.missing == 0
    }
}

/// Another process, working.
struct Worker {
    child: Child,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Worker {
    async fn start(peer: Peer, addresses: &Addresses, keys: &[&String]) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["child", peer.name()]).args(addresses.arguments()).kill_on_drop(true);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut stdin = child.stdin.take().context("no pipe")?;
        for key in keys {
            stdin.write_all(format!("{key}\n").as_bytes()).await?;
        }
        let stdout = child.stdout.take().context("no pipe")?;
        Ok(Self { child, answers: BufReader::new(stdout).lines() })
    }

    async fn answer(&mut self) -> Result<Option<Payment>> {
        let line = self.answers.next_line().await?;
        Ok(line.map(|line| serde_json::from_str(&line)).transpose()?)
    }
}

/// One contender through all its kills.
pub(crate) async fn count(
    peer: Peer,
    addresses: &Addresses,
    kills: usize,
    rng: &mut Rng,
) -> Result<Losses> {
    let mut conn = PgConnection::connect_with(&addresses.connect_options()?).await?;
    let empty = "truncate payment, payment_unique, saved_response";
    sqlx::raw_sql(empty).execute(&mut conn).await?;
    let keys: Vec<String> = (0..kills * KEYS).map(|_| random_key(rng)).collect();
    let mut answered = HashMap::new();
    for kill in 0..=kills {
        // Its own, so that the moments do not depend on how far the others got.
        let mut rng = rng.fork();
        let (answers, delay) = (rng.usize(1..=ANSWERS_MAX), rng.u64(..3000));
        let mut open: Vec<_> = keys.iter().filter(|key| !answered.contains_key(*key)).collect();
        rng.shuffle(&mut open);
        let mut worker = Worker::start(peer, addresses, &open).await?;
        if kill < kills {
            for _ in 0..answers {
                let payment =
                    worker.answer().await?.context("it has ended before it was killed")?;
                answered.insert(payment.key, payment.id);
            }
            tokio::time::sleep(Duration::from_micros(delay)).await;
            worker.child.kill().await?;
        }
        // What it said before it died, has been said.
        while let Some(payment) = worker.answer().await? {
            answered.insert(payment.key, payment.id);
        }
        let status = worker.child.wait().await?;
        ensure!(status.success() == (kill == kills), "{}: {status}", peer.name());
    }
    let (doubles, missing) = in_table(peer, &mut conn, &answered).await?;
    conn.close().await?;
    Ok(Losses { doubles, stuck: i64::try_from(keys.len() - answered.len())?, missing })
}

/// Second payments, and answers about payments that are not there.
async fn in_table(
    peer: Peer,
    conn: &mut PgConnection,
    answered: &HashMap<String, i64>,
) -> Result<(i64, i64)> {
    // Sessions whose process was killed may still be in their COMMIT.
    let sessions = "select count(*) from pg_stat_activity where application_name = $1";
    while sqlx::query_scalar::<_, i64>(sessions).bind(NAME).fetch_one(&mut *conn).await? > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let table = peer.table();
    let count = format!(
        "select (select count(*) - count(distinct key) from {table}),
                (select count(*) from unnest($1::text[], $2::bigint[]) as answered (key, id)
                  where not exists (select from {table} where {table}.key = answered.key
                                                          and {table}.id = answered.id))"
    );
    let count = sqlx::query_as(AssertSqlSafe(count));
    let (keys, ids): (Vec<_>, Vec<_>) = answered.iter().unzip();
    let ids: Vec<i64> = ids;
    Ok(count.bind(keys).bind(ids).fetch_one(conn).await?)
}

/// The other process: reads keys, writes answers.
pub(crate) async fn work(peer: Peer, addresses: &Addresses) -> Result<()> {
    let mut keys = String::new();
    std::io::stdin().read_to_string(&mut keys)?;
    let queue: VecDeque<String> = keys.lines().map(str::to_owned).collect();
    let queue = Arc::new(Mutex::new(queue));
    let services = Services::connect(addresses, CLIENTS, NAME).await?;
    let client = |_| client(peer, services.clone(), Arc::clone(&queue));
    (0..CLIENTS).map(client).collect::<JoinSet<_>>().join_all().await.into_iter().collect()
}

async fn client(peer: Peer, services: Services, queue: Arc<Mutex<VecDeque<String>>>) -> Result<()> {
    let queue = || queue.lock().unwrap_or_else(PoisonError::into_inner);
    let mut deadline = Instant::now() + GIVE_UP;
    while Instant::now() < deadline {
        let Some(key) = queue().pop_front() else { break };
        match peer.perform(&services, &key).await? {
            Some(answer) => {
                std::io::stdout().write_all(format!("{answer}\n").as_bytes())?;
                deadline = Instant::now() + GIVE_UP;
            }
            None => {
                queue().push_back(key);
                tokio::time::sleep(ASK_AGAIN).await;
            }
        }
    }
    Ok(())
}
