//! `pgonce-bench`: measures what pgonce costs, beside the alternatives.

mod arena;
mod compare;
mod cpu;
mod figures;
mod fill;
mod goals;
mod load;
mod machine;
mod meter;
mod orders;
mod plot;
mod print;
mod progress;
mod redis_lock;
mod relay;
mod report;
mod scenarios;

use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use clap::{Parser, ValueEnum, value_parser};
use pgonce::sqlx::postgres::PgConnectOptions;
use tokio::signal::unix::{SignalKind, signal};

use crate::arena::{Arena, Stage};
use crate::figures::Outcome;
use crate::load::Rounds;
use crate::machine::Machine;

/// Measure what pgonce costs on this machine, beside the alternatives
///
/// Each scenario runs its variants in turn, several rounds each, so that noise on the machine hits all of them. Ratios
/// compare variants of the same round: the median and, in brackets, the lowest and highest. Round trips, WAL and dead
/// row versions are counted in a separate run with one client.
///
/// The variants: `bare` is one transaction with one insert of 200 bytes, without protection. `hand-written` adds a
/// claim before and a result after the insert, in five round trips, as one writes it with sqlx. `run` is pgonce.
#[derive(Parser)]
#[command(name = "pgonce-bench", version)]
#[command(after_help = "\
Without --database-url (or DATABASE_URL), starts a temporary PostgreSQL with its default durability: the one on this
machine, or else a downloaded one. With a database, creates schemas there and drops them at the end; WAL and dead row
versions are not counted, because others may write too. Prints Markdown.
`all` takes about twelve minutes and 5 GB with the defaults.

Examples:
  pgonce-bench fresh replay
  pgonce-bench fresh --delay-ms 5 --clients 8
  pgonce-bench all --json --report bench-report > bench.jsonl
  pgonce-bench scale --keys 1000000 --response-bytes 2     50,000,000 keys: 30 GB with the WAL, 15 minutes")]
struct Args {
    /// The database, for example postgres://user@host/name
    // Its value may contain a password, so the help must not show it.
    #[arg(long, value_name = "URL", env = "DATABASE_URL", hide_env_values = true)]
    database_url: Option<String>,
    /// Print JSON: one object per table
    #[arg(long)]
    json: bool,
    /// Compare the figures with the project's goals; exits with 1 if one is missed
    #[arg(long)]
    check: bool,
    /// What to measure
    #[arg(required = true, value_name = "SCENARIO")]
    scenarios: Vec<Scenario>,
    /// Number of concurrent clients; several numbers are measured one after the other (1 to 256)
    #[arg(long, value_name = "N,N", default_value = "8,32", value_delimiter = ',')]
    #[arg(value_parser = value_parser!(u16).range(1..=256))]
    clients: Vec<u16>,
    /// Rounds of each variant (1 to 1,000)
    #[arg(long, value_name = "N", default_value_t = 9)]
    #[arg(value_parser = value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// Seconds per round of a variant (0.05 to 3,600)
    #[arg(long, value_name = "S", default_value_t = 0.7, value_parser = seconds)]
    #[arg(allow_negative_numbers = true)]
    seconds: f64,
    /// Operations per variant whose round trips and WAL are counted (10 to 100,000)
    #[arg(long, value_name = "N", default_value_t = 1000)]
    #[arg(value_parser = value_parser!(u32).range(10..=100_000))]
    counted: u32,
    /// Milliseconds to add to each round trip to the server, half each way (0 to 1,000)
    #[arg(long, value_name = "N", default_value_t = 0.0, value_parser = delay_ms)]
    #[arg(allow_negative_numbers = true)]
    delay_ms: f64,
    /// Write a page with plots, index.html, to this directory
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
    /// Keys in the table of churn and in the small one of scale; reap has 4 times, the large one of scale 50 times as
    /// many (1,000 to 20,000,000)
    #[arg(long, value_name = "N", default_value_t = 50_000)]
    #[arg(value_parser = value_parser!(u64).range(1000..=20_000_000))]
    keys: u64,
    /// scale: bytes per stored response, as JSON (2 to 100,000)
    #[arg(long, value_name = "N", default_value_t = 460)]
    #[arg(value_parser = value_parser!(u32).range(2..=100_000))]
    response_bytes: u32,
    /// churn: how often all keys are replaced (4 to 1,000)
    #[arg(long, value_name = "N", default_value_t = 20)]
    #[arg(value_parser = value_parser!(u16).range(4..=1000))]
    turnovers: u16,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// Every key is new
    Fresh,
    /// Every key has been used before
    Replay,
    /// Nine of ten keys are new
    Mixed,
    /// Sixteen callers at once on one key: they wait, or get "in progress"
    Hot,
    /// Work under a lease
    Leased,
    /// Messages, one by one and in batches
    Inbox,
    /// The HTTP layer against `run` in a handler
    Http,
    /// Deleting keys past their retention
    Reap,
    /// The size of a table whose keys are replaced
    Churn,
    /// A large table against a small one
    Scale,
    /// A lock in Redis; needs redis-server
    Peers,
    /// Orders taken twice when a process is killed; needs redis-server
    Kills,
    /// All except peers and kills
    All,
}

const IN_ORDER: [Scenario; 12] = [
    Scenario::Fresh,
    Scenario::Replay,
    Scenario::Mixed,
    Scenario::Hot,
    Scenario::Leased,
    Scenario::Inbox,
    Scenario::Http,
    Scenario::Reap,
    Scenario::Churn,
    Scenario::Scale,
    Scenario::Peers,
    Scenario::Kills,
];

impl Args {
    fn runs(&self, scenario: Scenario) -> bool {
        let needs_more = [Scenario::Peers, Scenario::Kills].contains(&scenario);
        let all = Scenario::All;
        self.scenarios.iter().any(|asked| *asked == scenario || *asked == all && !needs_more)
    }

    fn needs_redis(&self) -> bool {
        self.runs(Scenario::Peers) || self.runs(Scenario::Kills)
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    between(text, 0.05, 3600.0, "expected 0.05 to 3,600")
}

fn delay_ms(text: &str) -> Result<f64, String> {
    between(text, 0.0, 1000.0, "expected 0 to 1,000")
}

fn between(text: &str, low: f64, high: f64, limits: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if (low..=high).contains(&number) => Ok(number),
        _ => Err(limits.to_owned()),
    }
}

struct Bench<'a> {
    args: &'a Args,
    arena: &'a Arena,
    machine: Machine,
    outcomes: Vec<Outcome>,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    if let Some(orders) = scenarios::kills::orders() {
        scenarios::kills::work(&orders).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let args = Args::parse();
    if args.needs_redis() {
        redis_lock::is_installed()?;
        anyhow::ensure!(
            args.delay_ms == 0.0,
            "--delay-ms does not work with peers and kills: Redis is never delayed"
        );
    }
    let url = args.database_url.as_deref().filter(|url| !url.is_empty());
    let named = url.map(PgConnectOptions::from_str).transpose()?;
    if !args.json && named.is_none() {
        eprintln!("DATABASE_URL is not set: starting a temporary PostgreSQL ...");
    }
    // Listens before there is anything to clean up.
    let (mut interrupt, mut terminate) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let arena = Arena::open(named).await?;
    let done = tokio::select! {
        done = measure(&arena, &args) => done,
        _ = interrupt.recv() => Ok(ExitCode::from(130)),
        _ = terminate.recv() => Ok(ExitCode::from(143)),
    };
    let discarded = arena.discard().await;
    done.and_then(|code| discarded.map(|()| code))
}

async fn measure(arena: &Arena, args: &Args) -> anyhow::Result<ExitCode> {
    if let Some(folder) = &args.report {
        // Fails now rather than after twelve minutes.
        std::fs::create_dir_all(folder)?;
    }
    let machine = Machine::look(&arena.server_version, arena.is_throwaway());
    let mut bench = Bench { args, arena, machine, outcomes: Vec::new() };
    if !args.json {
        print::say(print::header(&bench));
    }
    for scenario in IN_ORDER {
        if args.runs(scenario) {
            bench.run(scenario).await?;
        }
    }
    if let Some(folder) = &args.report {
        report::write(&bench, folder)?;
    }
    if args.check && !args.json {
        print::say(print::goals(&bench));
    }
    let is_met = bench.outcomes.iter().flat_map(|outcome| &outcome.goals).all(goals::Goal::is_met);
    Ok(if is_met { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Bench<'_> {
    async fn run(&mut self, scenario: Scenario) -> anyhow::Result<()> {
        match scenario {
            Scenario::Fresh => scenarios::fresh::run(self).await,
            Scenario::Replay => scenarios::replay::run(self).await,
            Scenario::Mixed => scenarios::mixed::run(self).await,
            Scenario::Hot => scenarios::hot::run(self).await,
            Scenario::Leased => scenarios::leased::run(self).await,
            Scenario::Inbox => scenarios::inbox::run(self).await,
            Scenario::Http => scenarios::http::run(self).await,
            Scenario::Reap => scenarios::reap::run(self).await,
            Scenario::Churn => scenarios::churn::run(self).await,
            Scenario::Scale => scenarios::scale::run(self).await,
            Scenario::Peers => scenarios::peers::run(self).await,
            Scenario::Kills => scenarios::kills::run(self).await,
            Scenario::All => Ok(()),
        }
    }

    /// The database's URL, for another process.
    fn url(&self) -> String {
        let named = self.args.database_url.clone().filter(|url| !url.is_empty());
        named.unwrap_or_else(|| self.arena.url())
    }

    async fn stage(&self, name: &str) -> anyhow::Result<Stage> {
        self.arena.stage(name, self.args.delay_ms).await
    }

    fn rounds(&self) -> Rounds {
        let each = Duration::from_secs_f64(self.args.seconds);
        Rounds { count: self.args.rounds, each, postmaster: self.arena.postmaster }
    }

    fn first_clients(&self) -> u16 {
        self.args.clients.first().copied().unwrap_or(1)
    }

    fn tell(&mut self, mut outcome: Outcome) {
        if self.args.check {
            outcome.goals = goals::of(&outcome, outcome.delay_ms.unwrap_or(self.args.delay_ms));
        }
        match self.args.json {
            true => print::say(print::json(self, &outcome)),
            false => print::say(print::text(&outcome)),
        }
        self.outcomes.push(outcome);
    }
}
