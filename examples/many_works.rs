//! How many leased works one process can keep alive with leases of 3 s, near its server and far from it. Starts a
//! temporary PostgreSQL: `cargo run --example many_works`

use std::error::Error;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use pgonce::{Failure, Lease, Operation, PgOnce, Policy, Work};
use pgonce_testing::{Options, Throwaway};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{PgConnection, PgPool};
use tokio::task::JoinSet;

const WORKS: [usize; 3] = [1000, 3000, 10_000];
const LEASE: Duration = Duration::from_secs(3);
/// How long the leases are watched after all works have begun.
const LOOKED_AT: Duration = Duration::from_secs(6);

/// Listens in `folder`, and delays the server's bytes by `delay`.
fn relay(folder: &Path, server: PgConnectOptions, delay: Duration) -> PgConnectOptions {
    let socket = format!(".s.PGSQL.{}", server.get_port());
    let listener = UnixListener::bind(folder.join(&socket)).expect("a socket");
    let to = server.get_socket().expect("the server listens on a socket").join(socket);
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(server) = UnixStream::connect(&to) else { return };
            let (client_too, server_too) = (client.try_clone(), server.try_clone());
            thread::spawn(move || carry(client_too.ok()?, server_too.ok()?, Duration::ZERO));
            thread::spawn(move || carry(server, client, delay));
        }
    });
    server.socket(folder)
}

/// Copies bytes until one side closes.
fn carry(mut from: UnixStream, mut to: UnixStream, delay: Duration) -> Option<()> {
    let mut bytes = vec![0; 256 * 1024];
    loop {
        let count = from.read(&mut bytes).ok().filter(|count| *count > 0);
        let Some(count) = count else { return to.shutdown(std::net::Shutdown::Both).ok() };
        thread::sleep(delay);
        to.write_all(&bytes[..count]).ok()?;
    }
}

/// Whether no lease of `count` idle works lapses.
async fn holds(pool: &PgPool, server: &mut PgConnection, count: usize) -> sqlx::Result<bool> {
    sqlx::query("truncate pgonce.idempotency_keys, pgonce.unfinished")
        .execute(&mut *server)
        .await?;
    let (once, mut works) = (PgOnce::new(), JoinSet::new());
    for number in 0..count {
        let (once, pool) = (once.clone(), pool.clone());
        works.spawn(async move {
            let patient = Policy::new().wait(Duration::from_secs(10))?; // many begin at once
            let op =
                Operation::new("acme/orders.checkout", format!("order-{number}"))?.policy(patient);
            let work = async |_: &mut Work| std::future::pending::<Result<(), Failure>>().await;
            once.run_leased(&pool, &op, Lease::new(LEASE)?, work).await.map(drop)
        });
    }
    let sql = "select count(*), count(*) filter (where lease_expires_at < clock_timestamp())
               from pgonce.idempotency_keys";
    let mut all_begun = None::<Instant>;
    while all_begun.is_none_or(|at| at.elapsed() < LOOKED_AT) {
        let (begun, lapsed): (i64, i64) = sqlx::query_as(sql).fetch_one(&mut *server).await?;
        let ended = works.try_join_next();
        if lapsed > 0 || ended.is_some() {
            eprintln!("{count} works: {lapsed} leases lapsed; {ended:?}");
            return Ok(false);
        }
        if begun == count as i64 {
            all_begun.get_or_insert_with(Instant::now);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(true)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let server = Throwaway::start(&Options::new().fast()).await?;
    let past = PgPool::connect_with(server.connect_options()).await?;
    let mut past = past.acquire().await?;
    PgOnce::new().migrate(&mut past).await?;
    println!(
        "| round trip to the server | works without a lapsed lease | works when leases lapsed |\n|---|---|---|"
    );
    for micros in [200, 1000, 5000] {
        let (folder, delay) = (tempfile::tempdir()?, Duration::from_micros(micros));
        let (mut held, mut lost) = (0, None);
        for count in WORKS {
            let options = relay(folder.path(), server.connect_options(), delay);
            let pool = PgPoolOptions::new().max_connections(20).connect_lazy_with(options);
            if !holds(&pool, &mut past, count).await? {
                lost = Some(count);
                break;
            }
            held = count;
            std::fs::remove_dir_all(folder.path())?;
            std::fs::create_dir(folder.path())?;
        }
        let lost = lost.map_or("-".to_owned(), |count| count.to_string());
        println!("| {delay:?} | {held} | {lost} |");
    }
    Ok(())
}
