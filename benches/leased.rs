//! What leased work costs, counted and not timed: commits, round trips, WAL and dead rows of each operation,
//! as a Markdown table. `cargo bench --bench leased --features throwaway`
//!
//! Commits, dead rows and bytes are read from the WAL (with `pg_walinspect`: PostgreSQL 15 or newer), round
//! trips are counted by a relay between client and server. Whatever writes WAL at its own time is off.

#![allow(missing_docs, clippy::unwrap_used, reason = "a program, not an API")]

use std::path::Path;
use std::time::Duration;

use pgonce::throwaway::{Options, Throwaway};
use pgonce::{Failure, Fingerprint, Lease, Operation, PgOnce, Work};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{PgConnection, PgPool};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch::{self, Sender};

/// How many operations a figure is the mean of, and how many go before them.
const COUNT: u32 = 500;
const WARM_UP: u32 = 50;
const STEPS: [&str; 4] = ["step 1", "step 2", "step 3", "step 4"];

/// What the relay has carried to the client so far.
#[derive(Clone, Copy, Default)]
struct Carried {
    /// Answers, without those to the pings of sqlx's pool.
    answers: u32,
    /// COMMITs that were sent as such.
    commits: u32,
}

/// Listens in `folder` and carries messages to the server and back; how to connect through it.
fn relay(folder: &Path, server: PgConnectOptions, carried: Sender<Carried>) -> PgConnectOptions {
    let socket = format!(".s.PGSQL.{}", server.get_port());
    let listener = UnixListener::bind(folder.join(&socket)).unwrap();
    let to = server.get_socket().unwrap().join(socket);
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (mut from_client, to_client) = client.into_split();
            let (from_server, mut to_server) = UnixStream::connect(&to).await.unwrap().into_split();
            tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
            tokio::spawn(answers(from_server, to_client, carried.clone()));
        }
    });
    server.socket(folder)
}

/// Counts until one side hangs up. A message is a type, a length and a body; an answer ends with `Z`, and
/// that to a ping is nothing else.
async fn answers(
    mut server: OwnedReadHalf,
    mut client: OwnedWriteHalf,
    carried: Sender<Carried>,
) -> std::io::Result<()> {
    let (mut last, mut committed) = (b'Z', false);
    loop {
        let (kind, length) = (server.read_u8().await?, server.read_u32().await?);
        let mut body = vec![0; length as usize - 4];
        server.read_exact(&mut body).await?;
        if kind == b'Z' && last != b'Z' {
            carried.send_modify(|carried| {
                carried.answers += 1;
                carried.commits += u32::from(committed);
            });
        }
        (last, committed) = (kind, body == b"COMMIT\0");
        client.write_all(&[&[kind][..], &length.to_be_bytes(), &body].concat()).await?;
    }
}

/// Commits, round trips, bytes of WAL, dead rows.
type Cost = [f64; 4];

fn print(name: &str, cost: Cost) {
    let [commits, trips, bytes, dead] = cost.map(|mean| (mean * 100.0).round() / 100.0);
    println!("| {name} | {commits} | {trips} | {bytes:.0} | {dead} |");
}

/// What each of the `STEPS` has added.
fn each(with: Cost, without: Cost) -> Cost {
    std::array::from_fn(|at| (with[at] - without[at]) / STEPS.len() as f64)
}

struct Meter {
    once: PgOnce,
    lease: Lease,
    /// Through the relay.
    pool: PgPool,
    carried: watch::Receiver<Carried>,
    /// Past it.
    server: PgPool,
}

impl Meter {
    async fn mark(&self) -> (Carried, String) {
        let sql = "select pg_current_wal_insert_lsn()::text";
        let lsn = sqlx::query_scalar(sql).fetch_one(&self.server).await.unwrap();
        (*self.carried.borrow(), lsn)
    }

    /// The mean of `COUNT` operations since then.
    async fn mean_since(&self, (carried, from): (Carried, String)) -> Cost {
        let (now, to) = self.mark().await;
        // Only what is flushed can be read, and what comes without a commit may not be yet.
        sqlx::raw_sql("checkpoint").execute(&self.server).await.unwrap();
        let sql = "select count(*) filter (where record_type = 'COMMIT'),
            count(*) filter (where resource_manager = 'Heap' and record_type ~ 'UPDATE|DELETE'),
            ($2::pg_lsn - $1::pg_lsn)::bigint
            from pg_get_wal_records_info($1::pg_lsn, pg_current_wal_flush_lsn())
            where end_lsn <= $2::pg_lsn";
        let query = sqlx::query_as::<_, (i64, i64, i64)>(sql).bind(from).bind(to);
        let (commits, dead, bytes) = query.fetch_one(&self.server).await.unwrap();
        let trips = i64::from(now.answers - carried.answers);
        [commits, trips, bytes, dead].map(|total| total as f64 / f64::from(COUNT))
    }

    /// The mean cost of `work`, which says whether it went as it should. The same series has the same keys.
    async fn mean(&self, series: u32, work: impl AsyncFn(&Operation) -> bool) -> Cost {
        let mut mark = self.mark().await;
        for number in 0..WARM_UP + COUNT {
            if number == WARM_UP {
                mark = self.mark().await;
            }
            assert!(work(&operation(series, number)).await, "series {series}");
        }
        self.mean_since(mark).await
    }

    /// The mean cost of `run_leased` with this work, which must end as a replay, or not, or fail.
    async fn leased<W>(&self, series: u32, replay: Option<bool>, work: W) -> Cost
    where
        W: AsyncFn(&mut Work) -> Result<(), Failure>,
    {
        let work = async |held: &mut Work| work(held).await.map(|()| value(460));
        let run = async |op: &Operation| {
            let ended = self.once.run_leased(&self.pool, op, self.lease, work).await;
            ended.ok().map(|done| done.is_replay()) == replay
        };
        self.mean(series, run).await
    }

    /// The mean cost of a heartbeat, while a single operation waits for them.
    async fn heartbeat(&self, series: u32) -> Cost {
        let (op, lease) = (operation(series, 0), self.lease.heartbeat(Duration::from_millis(30)));
        let work = async |_: &mut Work| {
            self.commits(WARM_UP).await;
            let mark = self.mark().await;
            self.commits(COUNT).await;
            Ok::<_, Failure>(self.mean_since(mark).await)
        };
        let run = self.once.run_leased(&self.pool, &op, lease.unwrap(), work);
        run.await.unwrap().into_inner()
    }

    async fn commits(&self, count: u32) {
        let until = self.carried.borrow().commits + count;
        self.carried.clone().wait_for(|carried| carried.commits >= until).await.unwrap();
    }
}

/// A scope of 20 bytes, keys of 36 that ascend, as those of `Key::generate` do, and a fingerprint.
fn operation(series: u32, number: u32) -> Operation {
    let op = Operation::new("acme/orders.checkout", format!("{series:018}{number:018}")).unwrap();
    op.fingerprint(Fingerprint::of_bytes("request"))
}

/// A value that is so many bytes as JSON.
fn value(bytes: usize) -> String {
    "y".repeat(bytes - 2)
}

async fn insert(conn: &mut PgConnection) -> Result<String, sqlx::Error> {
    let sql = "insert into payment (note) values ($1)";
    sqlx::query(sql).bind("x".repeat(200)).execute(conn).await?;
    Ok(value(100))
}

async fn steps(work: &mut Work, names: &[&str]) -> Result<(), Failure> {
    for &name in names {
        work.step(name, async || Ok::<_, Failure>(value(100))).await?;
    }
    Ok(())
}

async fn print_table(meter: &Meter) {
    let version = sqlx::query_scalar::<_, String>("show server_version").fetch_one(&meter.server);
    println!("PostgreSQL {}, means of {COUNT}\n", version.await.unwrap());
    println!("| operation | commits | round trips | WAL bytes | dead rows |");
    println!("|---|---|---|---|---|");
    let Meter { once, pool, .. } = meter;
    let bare = async |_: &Operation| {
        let mut tx = pool.begin().await.unwrap();
        insert(&mut tx).await.is_ok() && tx.commit().await.is_ok()
    };
    print("an insert in a transaction, without pgonce", meter.mean(1, bare).await);
    let work = async |tx: &mut PgConnection| insert(tx).await.map(|_| value(460));
    let run = async |op: &Operation| once.run(pool, op, work).await.is_ok_and(|d| !d.is_replay());
    print("`run` with that insert", meter.mean(2, run).await);
    let new = Some(false);
    let plain = meter.leased(3, new, async |_| Ok(())).await;
    print("`run_leased` that only returns its value", plain);
    let last = async |work: &mut Work| Ok(insert(work.last_tx().await?).await.map(drop)?);
    print("`run_leased` with that insert in `last_tx`", meter.leased(4, new, last).await);
    let all = async |work: &mut Work| steps(work, &STEPS).await;
    print("each `step` more", each(meter.leased(5, new, all).await, plain));
    let all = async |work: &mut Work| {
        for name in STEPS {
            work.step_tx(name, insert).await?;
        }
        Ok(())
    };
    print("each `step_tx` with that insert more", each(meter.leased(6, new, all).await, plain));
    let all = async |work: &mut Work| {
        for _ in STEPS {
            work.progress(&value(100)).await?;
        }
        Ok(())
    };
    print("each `progress` more", each(meter.leased(7, new, all).await, plain));
    print("each heartbeat more", meter.heartbeat(8).await);
    print("a replay of `run_leased`", meter.leased(3, Some(true), async |_| Ok(())).await);
    let three = async |work: &mut Work| steps(work, &STEPS[..3]).await;
    let failing = async |work: &mut Work| three(work).await.and(Err("a failure".into()));
    meter.leased(9, None, failing).await;
    print("`run_leased` that takes over three steps", meter.leased(9, new, three).await);
}

#[tokio::main]
async fn main() {
    let options = ["full_page_writes", "autovacuum", "fsync"].into_iter();
    let options = options.fold(Options::new(), |options, name| options.setting(name, "off"));
    let options = options.setting("wal_keep_size", "1GB"); // it is read again
    let server = Throwaway::start(&options).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (count, carried) = watch::channel(Carried::default());
    let relayed = relay(folder.path(), server.connect_options(), count);
    let pool = PgPoolOptions::new().max_connections(1).connect_with(relayed).await.unwrap();
    let past = PgPool::connect_with(server.connect_options()).await.unwrap();
    let once = PgOnce::new();
    once.migrate(&mut past.acquire().await.unwrap()).await.unwrap();
    let prepare = "create extension pg_walinspect;
        create table payment (id bigint generated always as identity primary key, note text)";
    sqlx::raw_sql(prepare).execute(&past).await.unwrap();
    let lease = Lease::new(Duration::from_secs(600)).unwrap();
    let meter = Meter { once, lease, pool, carried, server: past };
    print_table(&meter).await;
}
