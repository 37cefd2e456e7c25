//! How fast the reaper deletes: keys with bodies of 460 bytes, in batches of a given size or as `Reaper` sizes
//! them, on one connection of a durable PostgreSQL. `cargo bench --bench reap --features throwaway`
//!
//! An old snapshot (`pg_dump`, a forgotten transaction) keeps deleted rows and their index entries in place; the
//! watermark is there so that a batch does not read those of the batches before.
//!
//! Beside it stands how fast keys can come in: the most that clients without any work of their own can make, by `run`
//! and in the inbox's batches. Those of the inbox have no bodies, and are reaped for themselves.
//!
//! The time includes the commits. CPU is what the server's process used, without the disk: on a machine whose disk
//! is the limit, a core's worth of keys is a million microseconds over it. It is read from `/proc`, and 0 elsewhere.

#![allow(missing_docs, clippy::unwrap_used, reason = "a program, not an API")]

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use pgonce::throwaway::{Options, Throwaway};
use pgonce::{Failure, Inbox, Key, Operation, PgOnce, Reaper};
use sqlx::postgres::PgPoolOptions;
use sqlx::{Connection, PgConnection, PgPool};
use tokio::task::JoinSet;

static ONCE: LazyLock<PgOnce> = LazyLock::new(PgOnce::new);
const KEYS: u32 = 300_000;
const ROUNDS: usize = 3;
const INTAKE_TIME: Duration = Duration::from_secs(3);
const RUN_CLIENTS: u32 = 16;
const INBOX_CLIENTS: u32 = 2;
const INBOX_BATCH: u32 = 1000;
/// Keys that come in are overdue at once.
const RETENTION: Duration = Duration::from_millis(1);

struct Variant {
    name: &'static str,
    /// `None`: as `Reaper` does it, without pauses.
    batch: Option<i32>,
    old_snapshot: bool,
}

const VARIANTS: [Variant; 5] = [
    Variant { name: "batches of 1,000", batch: Some(1000), old_snapshot: false },
    Variant { name: "batches of 10,000", batch: Some(10_000), old_snapshot: false },
    Variant { name: "`Reaper::pass`", batch: None, old_snapshot: false },
    Variant { name: "batches of 1,000, old snapshot", batch: Some(1000), old_snapshot: true },
    Variant { name: "`Reaper::pass`, old snapshot", batch: None, old_snapshot: true },
];

/// What one variant did in one round.
struct Measured {
    keys_per_second: f64,
    cpu_micros: f64,
    wal: f64,
}

/// Fills the table with keys that are overdue, the oldest first.
async fn load(conn: &mut PgConnection) {
    let sql = "
        truncate pgonce.idempotency_keys;
        insert into pgonce.idempotency_keys
          (created_at, expires_at, lease_expires_at, completed_at, token, attempt, status, scope, key,
           fingerprint, response_code, response_body)
        select at - interval '1 day', at, at, at, gen_random_uuid(), 1, 2, 'bench/payments.create', md5(n::text),
               decode(repeat('ab', 36), 'hex'), 201, decode(repeat('7b', 460), 'hex')
          from generate_series(1, KEYS) n,
               lateral (select now() - interval '1 hour' + n * interval '1 millisecond' as at) t;
        analyze pgonce.idempotency_keys;
        checkpoint";
    let sql = sqlx::AssertSqlSafe(sql.replace("KEYS", &KEYS.to_string()));
    sqlx::raw_sql(sql).execute(conn).await.unwrap();
}

/// Deletes all of them; returns how many.
async fn reap(conn: &mut PgConnection, batch: Option<i32>) -> u64 {
    let Some(batch) = batch else {
        let reaper = Reaper::new(&ONCE).share(1.0);
        return reaper.pass(conn).await.unwrap().deleted;
    };
    let sql = "call pgonce.reap($1, 1, $2::bigint)";
    let (mut total, mut watermark) = (0, None::<i64>);
    loop {
        let (next, deleted): (Option<i64>, i64) =
            sqlx::query_as(sql).bind(batch).bind(watermark).fetch_one(&mut *conn).await.unwrap();
        total += deleted.unsigned_abs();
        if deleted < i64::from(batch) {
            return total;
        }
        watermark = next;
    }
}

async fn round(server: &Throwaway, variant: &Variant) -> Measured {
    let mut conn = PgConnection::connect_with(&server.connect_options()).await.unwrap();
    load(&mut conn).await;
    let mut other = PgConnection::connect_with(&server.connect_options()).await.unwrap();
    let mut snapshot = other.begin_with("begin isolation level repeatable read").await.unwrap();
    if variant.old_snapshot {
        sqlx::query("select 1").execute(&mut *snapshot).await.unwrap();
    }
    let pid: i32 =
        sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut conn).await.unwrap();
    let (cpu, wal) = (cpu_micros(pid), wal_position(&mut conn).await);
    let began = Instant::now();
    let deleted = reap(&mut conn, variant.batch).await;
    let took = began.elapsed().as_secs_f64();
    assert_eq!(deleted, u64::from(KEYS), "{}", variant.name);
    let (cpu, wal) = (cpu_micros(pid) - cpu, wal_position(&mut conn).await - wal);
    snapshot.rollback().await.unwrap();
    let keys = f64::from(KEYS);
    Measured { keys_per_second: keys / took, cpu_micros: cpu / keys, wal: wal / keys }
}

/// What came in in one round, in keys per second, and how quickly the inbox's went.
struct Intake {
    run: f64,
    inbox: f64,
    inbox_reaped: f64,
}

async fn intake(server: &Throwaway) -> Intake {
    let pool = PgPoolOptions::new().test_before_acquire(false).max_connections(RUN_CLIENTS);
    let pool = pool.connect_with(server.connect_options()).await.unwrap();
    let mut conn = PgConnection::connect_with(&server.connect_options()).await.unwrap();
    let empty = "truncate pgonce.idempotency_keys; checkpoint";
    sqlx::raw_sql(empty).execute(&mut conn).await.unwrap();
    let run = by_clients(RUN_CLIENTS, &pool, run).await;
    sqlx::raw_sql(empty).execute(&mut conn).await.unwrap();
    let inbox = by_clients(INBOX_CLIENTS, &pool, receive).await;
    let reaped = Reaper::new(&ONCE).share(1.0).pass(&mut conn).await.unwrap();
    pool.close().await;
    Intake { run, inbox, inbox_reaped: reaped.deleted as f64 / reaped.took.as_secs_f64() }
}

/// How many keys a second clients make that do one thing again and again.
async fn by_clients<F>(clients: u32, pool: &PgPool, make: fn(PgPool) -> F) -> f64
where
    F: Future<Output = u32> + Send + 'static,
{
    let began = Instant::now();
    let mut running = JoinSet::new();
    for _ in 0..clients {
        let pool = pool.clone();
        running.spawn(async move {
            let mut made = 0;
            while began.elapsed() < INTAKE_TIME {
                made += make(pool.clone()).await;
            }
            made
        });
    }
    let made: u32 = running.join_all().await.into_iter().sum();
    f64::from(made) / began.elapsed().as_secs_f64()
}

async fn run(pool: PgPool) -> u32 {
    let op = Operation::new("bench/payments.create", Key::generate().as_str()).unwrap();
    let work = async |_: &mut PgConnection| Ok::<_, Failure>("7".repeat(460));
    ONCE.run(&pool, &op, work).await.unwrap();
    1
}

async fn receive(pool: PgPool) -> u32 {
    let inbox = Inbox::new(&ONCE, "bench").unwrap().retention(RETENTION);
    let ids: Vec<_> = (0..INBOX_BATCH).map(|_| Key::generate().as_str().to_owned()).collect();
    let mut tx = pool.begin().await.unwrap();
    inbox.receive_many(&mut tx, &ids).await.unwrap();
    tx.commit().await.unwrap();
    INBOX_BATCH
}

/// How long a process has run so far.
fn cpu_micros(pid: i32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap_or_default();
    let nanos = text.split(' ').next().and_then(|first| first.parse::<f64>().ok());
    nanos.unwrap_or_default() / 1000.0
}

/// How many bytes of WAL were written so far.
async fn wal_position(conn: &mut PgConnection) -> f64 {
    let sql = "select (pg_current_wal_insert_lsn() - '0/0')::float8";
    sqlx::query_scalar(sql).fetch_one(conn).await.unwrap()
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let options = Options::new()
        .setting("autovacuum", "off")
        .setting("shared_buffers", "1GB")
        .setting("max_wal_size", "8GB");
    let server = Throwaway::start(&options).await.unwrap();
    let mut conn = PgConnection::connect_with(&server.connect_options()).await.unwrap();
    ONCE.migrate(&mut conn).await.unwrap();
    let mut measured: [Vec<Measured>; VARIANTS.len()] = Default::default();
    let mut intakes = Vec::new();
    for _ in 0..ROUNDS {
        intakes.push(intake(&server).await);
        for (variant, measured) in VARIANTS.iter().zip(&mut measured) {
            measured.push(round(&server, variant).await);
        }
    }
    // Distributions add their own name after a space.
    let version = "select split_part(current_setting('server_version'), ' ', 1)";
    let version: String = sqlx::query_scalar(version).fetch_one(&mut conn).await.unwrap();
    println!("PostgreSQL {version}, durable; {KEYS} keys, medians of {ROUNDS} rounds");
    println!();
    let reaped = print_reaped(&measured);
    println!();
    print_intake(&intakes, reaped);
    conn.close().await.unwrap();
    server.stop().await;
}

/// Returns the keys per second of `Reaper::pass`.
fn print_reaped(measured: &[Vec<Measured>]) -> f64 {
    println!(
        "| reaped by one connection in | keys per second | CPU µs per key | bytes of WAL per key |"
    );
    println!("|---|--:|--:|--:|");
    let mut of_pass = 0.0;
    for (variant, results) in VARIANTS.iter().zip(measured) {
        let keys_per_second = median(results.iter().map(|result| result.keys_per_second));
        if variant.batch.is_none() && !variant.old_snapshot {
            of_pass = keys_per_second;
        }
        println!(
            "| {} | {keys_per_second:.0} | {:.2} | {:.0} |",
            variant.name,
            median(results.iter().map(|result| result.cpu_micros)),
            median(results.iter().map(|result| result.wal)),
        );
    }
    of_pass
}

fn print_intake(intakes: &[Intake], run_reaped: f64) {
    println!("| keys come in by | keys per second | and are reaped at | ratio |");
    println!("|---|--:|--:|--:|");
    let run = median(intakes.iter().map(|intake| intake.run));
    println!(
        "| `run`, {RUN_CLIENTS} clients | {run:.0} | {run_reaped:.0} | {:.1} |",
        run_reaped / run
    );
    let inbox = median(intakes.iter().map(|intake| intake.inbox));
    let reaped = median(intakes.iter().map(|intake| intake.inbox_reaped));
    println!(
        "| `receive_many`, {INBOX_CLIENTS} clients, batches of {INBOX_BATCH} | {inbox:.0} | {reaped:.0} | {:.1} |",
        reaped / inbox,
    );
}
