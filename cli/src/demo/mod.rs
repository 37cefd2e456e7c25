//! `pgonce demo`: a storm of lost responses and retries, without and with pgonce. With `--serve`, a page to try it by hand.

mod books;
mod plan;
mod report;
pub(crate) mod serve;
mod server;
mod storm;

use std::sync::Arc;
use std::time::Instant;

use clap::value_parser;
use pgonce::PgOnce;
use pgonce_testing::{Database, Options};

use crate::exit::CliError;
use crate::interrupt::Interrupt;
use crate::output;
use crate::session::Global;
use books::Books;
use plan::Plan;
use report::{Half, Report, Setting};
use server::Server;
use storm::storm;

/// Charge payments for clients that lose responses and retry, without and with pgonce
#[derive(clap::Args)]
#[command(after_help = "\
With DATABASE_URL or --database-url, the demo creates a schema in that database and drops it at
the end. Otherwise it starts a temporary PostgreSQL: the one on this machine, or else a downloaded one.
Exits with 1 if the half with pgonce charged a payment twice or lost one.

With --serve, it serves a page on which you lose answers, kill the payment server and read the books, with pgonce and
with a lock in Redis. The Redis is that of REDIS_URL, else a temporary one if redis-server is installed, else the lock
is a row in the database. The operator's page over the same keys is at /operator.

Examples:
  pgonce demo
  pgonce demo --serve
  pgonce demo --clients 32 --loss 0.6 --seed 7 --json")]
pub(crate) struct Args {
    /// Number of concurrent clients
    #[arg(long, value_name = "N", default_value_t = 16)]
    #[arg(value_parser = value_parser!(u16).range(1..=256))]
    clients: u16,
    /// Number of payments
    #[arg(long, value_name = "N", default_value_t = 500)]
    #[arg(value_parser = value_parser!(u32).range(1..=100_000))]
    payments: u32,
    /// Share of responses that never reach their client, 0.0 to 0.95
    #[arg(long, value_name = "SHARE", default_value_t = 0.4)]
    #[arg(value_parser = loss, allow_negative_numbers = true)]
    loss: f64,
    /// Repeat the faults of an earlier run; random by default
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    seed: Option<u64>,
    /// Serve a page on this machine to try it by hand
    #[arg(long, conflicts_with_all = ["clients", "payments", "loss", "seed"])]
    serve: bool,
    /// Port of the page; any free one by default
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        requires = "serve",
        hide_default_value = true
    )]
    port: u16,
    /// The Redis for the lock on the page, for example redis://host
    // Its value may contain a password, so the help must not show it.
    #[arg(long, value_name = "URL", env = "REDIS_URL", hide_env_values = true)]
    redis_url: Option<String>,
}

fn loss(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(loss) if (0.0..=0.95).contains(&loss) => Ok(loss),
        _ => Err("expected 0.0 to 0.95".to_owned()),
    }
}

pub(crate) async fn run(global: &Global, args: &Args) -> Result<(), CliError> {
    let mut interrupt = Interrupt::listen()?;
    let opened = tokio::select! {
        opened = open(global) => opened,
        () = interrupt.received() => Err(CliError::interrupted()),
    };
    let (database, books) = opened?;
    let work = async {
        if args.serve {
            let redis_url = args.redis_url.as_deref().filter(|url| !url.is_empty());
            return serve::serve(global, &database, &books, redis_url, args.port).await;
        }
        demonstrate(&books, args, database.is_throwaway(), global.json).await
    };
    let done = tokio::select! {
        done = work => done,
        // The usual end of the page.
        () = interrupt.received() => if args.serve { Ok(()) } else { Err(CliError::interrupted()) },
    };
    if done.is_err() && !global.json && !args.serve {
        output::line("")?; // the half's line may be unfinished
    }
    // A temporary server removes its databases.
    let discarded = if database.is_throwaway() { Ok(()) } else { books.discard().await };
    database.stop().await;
    done.and(discarded)
}

async fn open(global: &Global) -> Result<(Database, Books), CliError> {
    let database = match global.connect_options()? {
        Some(options) => Database::from(options),
        None => {
            if !global.json {
                eprintln!("DATABASE_URL is not set: starting a temporary PostgreSQL ...");
            }
            let started = Database::throwaway(&Options::new()).await;
            started.map_err(|error| CliError::failed("throwaway", error))?
        }
    };
    let books = Books::open(database.connect_options()).await?;
    Ok((database, books))
}

async fn demonstrate(
    books: &Books,
    args: &Args,
    throwaway: bool,
    json: bool,
) -> Result<(), CliError> {
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    let plan = Arc::new(Plan::new(seed, args.loss, args.payments));
    let once = books.prepare(&plan.payments).await?;
    let setting = Setting {
        server_version: books.server_version.clone(),
        throwaway,
        clients: args.clients,
        payments: args.payments,
        loss: args.loss,
        seed,
    };
    if !json {
        output::line(setting.header())?;
    }
    let unprotected = half(books, &plan, &setting, None, json).await?;
    let protected = half(books, &plan, &setting, Some(once), json).await?;
    let report = Report { setting, unprotected, protected };
    match json {
        true => output::json(&report.json())?,
        false => output::line(report.table())?,
    }
    if report.is_proved() { Ok(()) } else { Err(CliError::already_said()) }
}

/// Runs one storm, from an empty table to the count.
async fn half(
    books: &Books,
    plan: &Arc<Plan>,
    setting: &Setting,
    once: Option<PgOnce>,
    json: bool,
) -> Result<Half, CliError> {
    if !json {
        let name = if once.is_some() { "protected" } else { "unprotected" };
        output::bytes(format!("{name:11}  ").as_bytes())?;
    }
    books.empty().await?;
    let pool = books.pool(u32::from(setting.clients));
    let server = Arc::new(Server::new(books, pool.clone(), once));
    let began = Instant::now();
    let tally = storm(server, Arc::clone(plan), setting.clients).await?;
    let took = began.elapsed();
    pool.close().await;
    let count = books.count(&tally.answers).await?;
    let half = Half::new(count, tally);
    if !json {
        output::line(half.summary(took))?;
    }
    Ok(half)
}
