//! What an operation allocates in the client, how long the parts without a database take, and with `valgrind` how many
//! instructions an operation takes.
//!
//! ```sh
//! cargo run --release -p pgonce-bench --bin counts
//! cargo run --release -p pgonce-bench --bin counts -- --instructions
//! ```
//!
//! Each figure is the difference between many and few operations, so it excludes start and warm-up. It includes the
//! caller's part: a key, the request, the insert of a 200-byte row (not in the HTTP layer), a value of 460 bytes; and
//! the driver's part. The pool has one connection and does not test it. Only the thread that does the work is counted.
//! Freed memory is not subtracted.
//!
//! `--instructions` runs this program twice per operation. By hand:
//!
//! ```sh
//! valgrind --tool=callgrind --callgrind-out-file=/dev/null PROGRAM --only run --count 100
//! ```
//!
//! Allocations hardly vary between runs, nor do instructions without a database. The other instructions vary by up to a
//! third: they depend on how often the runtime waited for a response.
//!
//! With `--features metrics` the library counts metrics, into a recorder for Prometheus.
//!
//! The server is not counted. `valgrind` lacks the CPU's SHA-256 instructions, so it counts fingerprints as on a CPU
//! without them.

#![allow(missing_docs, clippy::unwrap_used, reason = "a program, not an API")]

mod parts;

use std::convert::Infallible;
use std::process::Command;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderName, Request, Response, StatusCode, header};
use http_body_util::Full;
use pgonce::web::{Buffered, IdempotencyLayer};
use pgonce::{Begin, Claim, Failure, Fingerprint, Key, Lease, Operation, PgOnce, Scope};
use pgonce_testing::{Options, Throwaway};
use sqlx::postgres::PgPoolOptions;
use sqlx::{PgConnection, PgPool};
use tokio::runtime::Runtime;
use tower::{Layer, Service, ServiceExt, service_fn};

const WARM_UP: u32 = 100;
const FEW: u32 = 100;
const MANY: u32 = 1100;
const BATCH: u32 = 1000;
const BATCHES: usize = 51;
/// The operations that need a database, as `--only` takes them.
const OPERATIONS: [&str; 10] = [
    "transaction",
    "run",
    "run, replay",
    "begin, complete",
    "begin, replay",
    "begin_leased, complete",
    "HTTP layer",
    "HTTP layer, 8 headers",
    "HTTP layer, replay",
    "HTTP layer, replay of 8 headers",
];
/// Response headers that are stored by default.
const HEADERS: [HeaderName; 8] = [
    header::CONTENT_DISPOSITION,
    header::CONTENT_ENCODING,
    header::CONTENT_LANGUAGE,
    header::CONTENT_LOCATION,
    header::CONTENT_TYPE,
    header::ETAG,
    header::LAST_MODIFIED,
    header::LINK,
];

struct Database {
    runtime: Runtime,
    server: Throwaway,
    pool: PgPool,
    once: PgOnce,
}

impl Database {
    fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let once = PgOnce::new();
        let (server, pool) = runtime.block_on(async {
            let server = Throwaway::start(&Options::new().fast()).await.unwrap();
            let pool = PgPoolOptions::new()
                .max_connections(1)
                .test_before_acquire(false)
                .connect_with(server.connect_options())
                .await
                .unwrap();
            once.migrate(&mut pool.acquire().await.unwrap()).await.unwrap();
            sqlx::query("create table payment (id bigint generated always as identity, note text)")
                .execute(&pool)
                .await
                .unwrap();
            (server, pool)
        });
        Self { runtime, server, pool, once }
    }

    fn perform(&self, name: &str, count: u32) {
        let same = name.contains("replay");
        let headers = if name.ends_with("8 headers") { &HEADERS[..] } else { &[] };
        self.runtime.block_on(async {
            let service = self.service(headers);
            for _ in 0..count {
                let key = if same { Key::new("the same").unwrap() } else { Key::generate() };
                match name {
                    "transaction" => transaction(&self.pool).await,
                    "run" | "run, replay" => self.run(&key).await,
                    "begin, complete" | "begin, replay" => self.begin(&key).await,
                    "begin_leased, complete" => self.begin_leased(&key).await,
                    _ => request(service.clone(), &key).await,
                }
            }
        });
    }

    async fn run(&self, key: &Key) {
        let work = async |tx: &mut PgConnection| pay(tx).await.map_err(Failure::from);
        self.once.run(&self.pool, &operation(key), work).await.unwrap();
    }

    async fn begin(&self, key: &Key) {
        let mut tx = self.pool.begin().await.unwrap();
        if let Begin::Started(claim) = self.once.begin(&mut tx, &operation(key)).await.unwrap() {
            complete(claim, &mut tx).await;
        }
        tx.commit().await.unwrap();
    }

    async fn begin_leased(&self, key: &Key) {
        let minute = Duration::from_secs(60);
        let begun = self
            .once
            .begin_leased(&self.pool, &operation(key), Lease::new(minute).unwrap())
            .await
            .unwrap();
        let Begin::Started(claim) = begun else { panic!("a new key is not new") };
        let mut tx = self.pool.begin().await.unwrap();
        complete(claim, &mut tx).await;
        tx.commit().await.unwrap();
    }

    /// The layer around a handler without work. The response has these headers.
    fn service(
        &self,
        headers: &'static [HeaderName],
    ) -> impl Service<Request<Full<Bytes>>, Response = StatusCode, Error = Infallible> + Clone {
        let scope = |_: &http::request::Parts| Scope::new("bench/orders").ok();
        let layer = IdempotencyLayer::new(self.once.clone(), self.pool.clone(), scope);
        let handler = async |_: Request<Buffered<Full<Bytes>>>| {
            let response = headers.iter().fold(Response::builder(), |response, name| {
                response.header(name, "a value of the length of many")
            });
            Ok::<_, Infallible>(response.body(Full::new(Bytes::from("y".repeat(460)))).unwrap())
        };
        layer.layer(service_fn(handler)).map_response(|response| response.status())
    }

    fn stop(self) {
        self.runtime.block_on(async {
            self.pool.close().await;
            self.server.stop().await;
        });
    }
}

async fn pay(conn: &mut PgConnection) -> sqlx::Result<String> {
    let sql = "insert into payment (note) values ($1)";
    sqlx::query(sql).bind("x".repeat(200)).execute(conn).await?;
    Ok("y".repeat(460))
}

async fn transaction(pool: &PgPool) {
    let mut tx = pool.begin().await.unwrap();
    pay(&mut tx).await.unwrap();
    tx.commit().await.unwrap();
}

fn operation(key: &Key) -> Operation {
    let op = Operation::new("bench/payments", key.as_str()).unwrap();
    op.fingerprint(Fingerprint::of_bytes("request"))
}

async fn complete(claim: Claim, tx: &mut PgConnection) {
    let paid = pay(tx).await.unwrap();
    claim.complete(tx, pgonce::Response::json(&paid).unwrap()).await.unwrap();
}

async fn request(
    service: impl Service<Request<Full<Bytes>>, Response = StatusCode, Error = Infallible>,
    key: &Key,
) {
    let request = Request::post("/orders")
        .header("idempotency-key", format!("\"{}\"", key.as_str()))
        .body(Full::new(Bytes::from_static(&[b'x'; 100])))
        .unwrap();
    assert_eq!(service.oneshot(request).await.unwrap(), StatusCode::OK);
}

/// Performs one kind of operation repeatedly, after a warm-up.
struct Subject {
    perform: Box<dyn FnMut(u32)>,
    stop: Box<dyn FnOnce()>,
}

impl Subject {
    fn new(name: &'static str) -> Self {
        let mut subject = if OPERATIONS.contains(&name) {
            let database = std::rc::Rc::new(Database::start());
            let also = std::rc::Rc::clone(&database);
            Self {
                perform: Box::new(move |count| also.perform(name, count)),
                stop: Box::new(move || {
                    std::rc::Rc::into_inner(database).unwrap().stop();
                }),
            }
        } else {
            let mut part = parts::part(name);
            Self {
                perform: Box::new(move |count| (0..count).for_each(|_| part())),
                stop: Box::new(|| ()),
            }
        };
        (subject.perform)(WARM_UP);
        subject
    }

    /// The time of one operation: the median of many batches.
    fn micros(&mut self) -> f64 {
        let mut batch = || {
            let began = Instant::now();
            (self.perform)(BATCH);
            began.elapsed().as_secs_f64() * 1e6 / f64::from(BATCH)
        };
        let mut batches: Vec<_> = (0..BATCHES).map(|_| batch()).collect();
        batches.sort_by(f64::total_cmp);
        batches[batches.len() / 2]
    }

    fn stop(self) {
        drop(self.perform);
        (self.stop)();
    }
}

/// Per operation, from the totals of few and many.
fn each(few: u64, many: u64) -> f64 {
    (many as f64 - few as f64) / f64::from(MANY - FEW)
}

/// Instructions of a whole run of this program.
fn instructions(name: &str, count: u32) -> u64 {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe().unwrap())
        .args(["--only", name, "--count", &count.to_string()])
        .output()
        .expect("valgrind is installed");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let collected = said.lines().find_map(|line| line.split_once("Collected :"));
    collected.expect("callgrind's total").1.trim().parse().unwrap()
}

fn main() {
    #[cfg(feature = "metrics")]
    metrics_exporter_prometheus::PrometheusBuilder::new().install_recorder().unwrap();
    let args: Vec<_> = std::env::args().collect();
    let after = |flag| {
        args.iter().position(|arg| arg == flag).and_then(|place| args.get(place + 1)).cloned()
    };
    let names = || parts::NAMES.into_iter().chain(OPERATIONS);
    if let Some(only) = after("--only") {
        let name = names().find(|name| *name == only).expect("--only takes a name of the table");
        let mut subject = Subject::new(name);
        (subject.perform)(after("--count").expect("--count N").parse().unwrap());
        return subject.stop();
    }
    let with_instructions = args.iter().any(|arg| arg == "--instructions");
    println!("| operation | allocations | bytes allocated | instructions | takes |");
    println!("|---|--:|--:|--:|--:|");
    for name in names() {
        let mut subject = Subject::new(name);
        let mut allocated = |count| allocation_counter::measure(|| (subject.perform)(count));
        let (few, many) = (allocated(FEW), allocated(MANY));
        let takes = match OPERATIONS.contains(&name) {
            true => "-".to_owned(),
            false => format!("{:.2} µs", subject.micros()),
        };
        subject.stop();
        let instructions = match with_instructions {
            true => format!("{:.0}", each(instructions(name, FEW), instructions(name, MANY))),
            false => "-".to_owned(),
        };
        println!(
            "| {name} | {:.1} | {:.0} | {instructions} | {takes} |",
            each(few.count_total, many.count_total),
            each(few.bytes_total, many.bytes_total),
        );
    }
}
