//! pgonce beside what people use instead: throughput against a bare transaction, and payments that were made
//! twice, lost or left undone when the process is killed. Prints one table.
//!
//! `cargo run --release`, in this folder; PostgreSQL and redis-server must be installed.
//!
//! - `--quick`: one short round and few kills, to see that it works. Its figures mean nothing.
//! - `--json`: one object per contender instead of the table.
//! - `--seed N`: the moments of the kills and the order of the contenders as in an earlier run.
//!
//! Progress goes to standard error. It ends with 1 if pgonce or the claim row has paid twice, lost a payment or
//! left a key undone, and when something fails.

mod kills;
mod lock;
mod payment;
mod peer;
mod report;
mod servers;
mod speed;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use fastrand::Rng;
use sqlx::{Connection, PgConnection};

use peer::Peer;
use report::{Row, Setting};
use servers::{Addresses, Servers};
use speed::Plan;

struct Args {
    plan: Plan,
    kills: usize,
    json: bool,
    seed: u64,
}

impl Args {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self> {
        let plan = Plan { rounds: 7, slice: Duration::from_millis(250) };
        let seed = fastrand::u64(..1_000_000);
        let mut args = Self { plan, kills: 16, json: false, seed };
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--quick" => {
                    args.plan = Plan { rounds: 1, slice: Duration::from_millis(50) };
                    args.kills = 4;
                }
                "--json" => args.json = true,
                "--seed" => {
                    args.seed = arguments.next().context("--seed takes a number")?.parse()?
                }
                _ => bail!("{argument}: it takes --quick, --json and --seed N"),
            }
        }
        Ok(args)
    }
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let mut arguments = std::env::args().skip(1).peekable();
    if arguments.next_if_eq("child").is_some() {
        let peer =
            arguments.next().as_deref().and_then(Peer::named).context("no such contender")?;
        kills::work(peer, &Addresses::parse(arguments)?).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let args = Args::parse(arguments)?;
    let redis = servers::redis_version()?;
    eprintln!("seed {}", args.seed);
    let servers = Servers::start().await?;
    let rows = run(&servers.addresses, &args).await;
    let postgres = postgres_version(&servers.addresses).await;
    servers.stop().await;
    let rows = rows?;
    let setting = Setting {
        postgres: postgres?,
        redis,
        cores: std::thread::available_parallelism()?.get(),
        rounds: args.plan.rounds,
        kills: args.kills,
        seed: args.seed,
    };
    match args.json {
        true => print!("{}", report::json_lines(&rows, &setting)),
        false => print!("{}", report::markdown(&rows, &setting)),
    }
    let is_broken = rows.iter().any(Row::is_broken);
    Ok(if is_broken { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn run(addresses: &Addresses, args: &Args) -> Result<Vec<Row>> {
    let mut rng = Rng::with_seed(args.seed);
    let speeds = speed::measure(addresses, args.plan, &mut rng).await?;
    let mut rows = Vec::new();
    for (peer, speed) in Peer::ALL.into_iter().zip(&speeds) {
        eprintln!("{} kills: {}", args.kills, peer.name());
        let losses = kills::count(peer, addresses, args.kills, &mut rng).await?;
        rows.push(Row::new(peer, speed, &speeds[0], losses));
    }
    Ok(rows)
}

async fn postgres_version(addresses: &Addresses) -> Result<String> {
    let mut conn = PgConnection::connect_with(&addresses.connect_options()?).await?;
    // Distributions add their own name after a space.
    let sql = "select split_part(current_setting('server_version'), ' ', 1)";
    Ok(sqlx::query_scalar(sql).fetch_one(&mut conn).await?)
}
