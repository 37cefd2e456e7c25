//! `pgonce`: manages the schema and keys, and runs the demo, from a shell.

mod adoption;
mod audit;
mod backfill;
mod check;
mod dashboard;
mod demo;
mod derived_key;
mod doctor;
mod exit;
mod get;
mod hash;
mod inbox;
mod interrupt;
mod list;
mod migrate;
mod mode;
mod output;
mod reap;
mod release;
mod resolve;
mod session;
mod stats;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::exit::{CliError, EXIT_CODES};
use crate::session::Global;

/// Idempotency keys for Rust on Postgres: manage the schema and its keys, or run the demo.
#[derive(Parser)]
#[command(name = "pgonce", version, after_help = EXIT_CODES)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Demo(demo::Args),
    #[command(hide = true)]
    DemoServer(demo::serve::server::Args),
    Migrate(migrate::Args),
    Check(check::Args),
    Doctor(doctor::Args),
    Dashboard(dashboard::Args),
    Stats(stats::Args),
    List(list::Args),
    Get(get::Args),
    DerivedKey(derived_key::Args),
    Hash(hash::Args),
    Audit(audit::Args),
    Mode(mode::Args),
    Adoption(adoption::Args),
    Backfill(backfill::Args),
    Release(release::Args),
    Resolve(resolve::Args),
    Inbox(inbox::Args),
    Reap(reap::Args),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return exit::usage(&error),
    };
    // Logs only if RUST_LOG asks: a command prints its result or one error. The page's log is its audit trail.
    let logged = match cli.command {
        Command::Dashboard(_) => dashboard::logged(),
        _ => LevelFilter::OFF.into(),
    };
    let filter = EnvFilter::builder().with_default_directive(logged);
    tracing_subscriber::fmt()
        .with_env_filter(filter.from_env_lossy())
        .with_writer(std::io::stderr)
        .init();
    let json = cli.global.json;
    let done = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime.block_on(dispatch(cli)),
        Err(error) => Err(CliError::failed("runtime", error)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error.report(json),
    }
}

async fn dispatch(cli: Cli) -> Result<(), CliError> {
    let Cli { global, command } = cli;
    match command {
        Command::Demo(args) => demo::run(&global, &args).await,
        Command::DemoServer(args) => demo::serve::server::run(&global, &args).await,
        // `derived-key`, `hash` and `migrate --print` need no database.
        Command::DerivedKey(args) => derived_key::run(&global, &args),
        Command::Hash(args) => hash::run(&global, &args),
        Command::Migrate(args) if args.print => migrate::print(&global, &args),
        Command::Migrate(args) => migrate::run(&mut global.session().await?, &args).await,
        Command::Check(_) => check::run(&global).await,
        Command::Doctor(args) => doctor::run(&global, &args).await,
        Command::Dashboard(args) => dashboard::run(&global, &args).await,
        Command::Stats(_) => stats::run(&mut global.session().await?).await,
        Command::List(args) => list::run(&mut global.session().await?, &args).await,
        Command::Get(args) => get::run(&mut global.session().await?, &args).await,
        Command::Audit(args) => audit::run(&mut global.session().await?, &args).await,
        Command::Mode(args) => mode::run(&mut global.session().await?, &args).await,
        Command::Adoption(args) => adoption::run(&mut global.session().await?, &args).await,
        Command::Backfill(args) => backfill::run(&global, &args).await,
        Command::Release(args) => release::run(&mut global.session().await?, &args).await,
        Command::Resolve(args) => resolve::run(&mut global.session().await?, &args).await,
        Command::Inbox(args) => inbox::run(&mut global.session().await?, &args).await,
        Command::Reap(args) => reap::run(&mut global.session().await?, &args).await,
    }
}
