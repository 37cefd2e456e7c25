//! `pgonce bench`: what pgonce costs here, beside what one would use instead.

mod arena;
mod compare;
mod figures;
mod fill;
mod load;
mod machine;
mod meter;
mod orders;
mod plot;
mod print;
mod progress;
mod relay;
mod report;
mod scenarios;

use std::path::PathBuf;
use std::time::Duration;

use clap::{ValueEnum, value_parser};

use crate::exit::CliError;
use crate::interrupt::Interrupt;
use crate::output;
use crate::session::Global;
use arena::{Arena, Stage};
use figures::Outcome;
use load::Rounds;
use machine::Machine;

/// Measure what pgonce costs on this machine, beside what one would use instead
///
/// Each scenario runs its variants in turn, several rounds of each, so that a noisy machine is noisy for all of them.
/// Ratios compare variants of the same round; what is shown is their median and, in brackets, the lowest and the
/// highest. Round trips, WAL and dead row versions are counted in a run of their own, by one client. At the end come
/// the goals that the project has set itself, and whether they are met.
///
/// The variants: `bare` is one transaction with one insert of 200 bytes, without protection. `hand-written` is that
/// with a claim before and a result after it, in five round trips, as one writes it with sqlx. `floor` is the fewest
/// and smallest statements that protect it, sent in three messages by nothing but sqlx. `run` is pgonce.
#[derive(clap::Args)]
#[command(after_help = "\
Without --database-url (or DATABASE_URL) it starts a throw-away PostgreSQL, as durable as it comes, from the programs
on this machine. With one it works in schemas of its own in that database and drops them at the end; WAL and dead row
versions are not counted there, because others write too. What it prints is Markdown.
`all` takes some eleven minutes and 5 GB with the defaults. Exits with 0 whether or not goals are met.

Examples:
  pgonce bench fresh replay
  pgonce bench fresh --delay-ms 5 --clients 8
  pgonce bench all --json --report bench-report > bench.jsonl
  pgonce bench scale --keys 1000000 --response-bytes 2     50,000,000 keys: 30 GB with the log, a quarter of an hour")]
pub(crate) struct Args {
    /// What to measure
    #[arg(required = true, value_name = "SCENARIO")]
    scenarios: Vec<Scenario>,
    /// How many clients work at the same time; several numbers are measured one after the other (1 to 256)
    #[arg(long, value_name = "N,N", default_value = "8,32", value_delimiter = ',')]
    #[arg(value_parser = value_parser!(u16).range(1..=256))]
    clients: Vec<u16>,
    /// Rounds of each variant (1 to 1,000)
    #[arg(long, value_name = "N", default_value_t = 9)]
    #[arg(value_parser = value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// Seconds of each round of a variant (0.05 to 3,600)
    #[arg(long, value_name = "S", default_value_t = 0.7, value_parser = seconds)]
    #[arg(allow_negative_numbers = true)]
    seconds: f64,
    /// Operations of each variant whose round trips and WAL are counted (10 to 100,000)
    #[arg(long, value_name = "N", default_value_t = 1000)]
    #[arg(value_parser = value_parser!(u32).range(10..=100_000))]
    counted: u32,
    /// Makes a round trip to the server so much longer, half of it each way (0 to 1,000)
    #[arg(long, value_name = "N", default_value_t = 0.0, value_parser = delay_ms)]
    #[arg(allow_negative_numbers = true)]
    delay_ms: f64,
    /// Writes a page with plots, index.html, into this directory
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
    /// Keys in the tables of churn and scale; reap's has four times, the large one of scale fifty times as many
    /// (1,000 to 20,000,000)
    #[arg(long, value_name = "N", default_value_t = 50_000)]
    #[arg(value_parser = value_parser!(u64).range(1000..=20_000_000))]
    keys: u64,
    /// scale: bytes of a stored response, as JSON (2 to 100,000)
    #[arg(long, value_name = "N", default_value_t = 460)]
    #[arg(value_parser = value_parser!(u32).range(2..=100_000))]
    response_bytes: u32,
    /// churn: how often all keys are replaced by others (4 to 1,000)
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
    /// Sixteen at once on one key, that wait or are told "in progress"
    Hot,
    /// Work under a lease
    Leased,
    /// Messages, one by one and in batches
    Inbox,
    /// The HTTP layer against `run` in a handler
    Http,
    /// Deleting keys past their retention
    Reap,
    /// The size of a table whose keys come and go
    Churn,
    /// A large table against a small one
    Scale,
    /// All of these
    All,
}

const ALL: [Scenario; 10] = [
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
];

impl Args {
    fn runs(&self, scenario: Scenario) -> bool {
        self.scenarios.contains(&scenario) || self.is_all()
    }

    fn is_all(&self) -> bool {
        self.scenarios.contains(&Scenario::All)
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    between(text, 0.05, 3600.0, "it takes 0.05 to 3,600")
}

fn delay_ms(text: &str) -> Result<f64, String> {
    between(text, 0.0, 1000.0, "it takes 0 to 1,000")
}

fn between(text: &str, low: f64, high: f64, limits: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if (low..=high).contains(&number) => Ok(number),
        _ => Err(limits.to_owned()),
    }
}

/// What the scenarios work with, and what has come of them so far.
struct Bench<'a> {
    args: &'a Args,
    arena: &'a Arena,
    machine: Machine,
    json: bool,
    outcomes: Vec<Outcome>,
}

pub(crate) async fn run(global: &Global, args: &Args) -> Result<(), CliError> {
    let mut interrupt = Interrupt::listen()?;
    if !global.json && global.connect_options()?.is_none() {
        eprintln!("DATABASE_URL is not set: starting a throw-away PostgreSQL ...");
    }
    let opened = tokio::select! {
        opened = Arena::open(global) => opened,
        () = interrupt.received() => Err(CliError::interrupted()),
    };
    let arena = opened?;
    let done = tokio::select! {
        done = measure(&arena, args, global.json) => done,
        () = interrupt.received() => Err(CliError::interrupted()),
    };
    let discarded = arena.discard().await;
    done.and(discarded)
}

async fn measure(arena: &Arena, args: &Args, json: bool) -> Result<(), CliError> {
    if let Some(folder) = &args.report {
        // Better now than after eleven minutes.
        std::fs::create_dir_all(folder).map_err(|error| CliError::failed("io", error))?;
    }
    let machine = Machine::look(&arena.server_version, arena.is_throwaway());
    let mut bench = Bench { args, arena, machine, json, outcomes: Vec::new() };
    if !json {
        output::line(print::header(&bench))?;
    }
    for scenario in ALL {
        if args.runs(scenario) {
            bench.run(scenario).await?;
        }
    }
    let has_goals = bench.outcomes.iter().any(|outcome| !outcome.goals.is_empty());
    if !json && has_goals {
        output::line(print::summary(&bench))?;
    }
    match &args.report {
        Some(folder) => report::write(&bench, folder),
        None => Ok(()),
    }
}

impl Bench<'_> {
    async fn run(&mut self, scenario: Scenario) -> Result<(), CliError> {
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
            Scenario::All => Ok(()),
        }
    }

    async fn stage(&self, name: &str) -> Result<Stage, CliError> {
        self.arena.stage(name, self.args.delay_ms).await
    }

    fn rounds(&self) -> Rounds {
        Rounds { count: self.args.rounds, each: Duration::from_secs_f64(self.args.seconds) }
    }

    fn first_clients(&self) -> u16 {
        self.args.clients.first().copied().unwrap_or(1)
    }

    /// Prints what a scenario came to.
    fn tell(&mut self, outcome: Outcome) -> Result<(), CliError> {
        match self.json {
            true => output::json(&print::json(self, &outcome))?,
            false => output::line(print::text(&outcome))?,
        }
        self.outcomes.push(outcome);
        Ok(())
    }
}
