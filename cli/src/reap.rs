//! `pgonce reap`.

use pgonce::Reaper;
use serde_json::json;

use crate::exit::CliError;
use crate::output;
use crate::session::Session;

/// Delete keys past their retention, batch by batch until none is left
#[derive(clap::Args)]
#[command(after_help = "Example, in a crontab:\n  */5 * * * *  pgonce reap --json")]
pub(crate) struct Args {
    /// Delete one batch of at most N keys, then stop (1 to 100,000)
    #[arg(long, value_name = "N")]
    batch: Option<u32>,
}

pub(crate) async fn run(session: &mut Session, args: &Args) -> Result<(), CliError> {
    let Session { once, conn, .. } = session;
    let reaped = match args.batch {
        Some(limit) => once.reap_once(conn, limit).await?,
        None => Reaper::new(once).pass(conn).await?,
    };
    if session.json {
        return output::json(&json!({
            "deleted": reaped.deleted,
            "keys_per_second": reaped.keys_per_second(),
            "cut_short": reaped.cut_short,
            "backlog": reaped.backlog,
            "oldest_overdue_ms": reaped.oldest_overdue.map(output::millis),
        }));
    }
    output::pairs(&[
        ("deleted", output::grouped(reaped.deleted)),
        ("keys per second", output::grouped(reaped.keys_per_second())),
        ("still overdue", output::grouped(reaped.backlog)),
        ("oldest overdue by", reaped.oldest_overdue.map_or("-".to_owned(), output::duration)),
    ])
}
