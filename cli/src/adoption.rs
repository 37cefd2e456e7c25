//! `pgonce adoption`.

use std::time::Duration;

use pgonce::{Adoption, RolloutMode};
use serde_json::json;
use time::OffsetDateTime;

use crate::exit::CliError;
use crate::output::{self, grouped};
use crate::session::Session;

/// Show how far each class is with its keys: who sends them, and what protection prevents or would prevent
#[derive(clap::Args)]
#[command(after_help = "\
Counts only processes that keep a history (History in Rust). OBSERVED: what would have happened, while a class
is in the mode observe. GUESSABLE: of the keys looked at, the share that is a number, or a word and a number.

Example:
  pgonce adoption --last 7d")]
pub(crate) struct Args {
    /// The time to look back
    #[arg(long, value_name = "DURATION", default_value = "1d", value_parser = humantime::parse_duration)]
    last: Duration,
}

pub(crate) async fn run(session: &mut Session, args: &Args) -> Result<(), CliError> {
    let until = OffsetDateTime::now_utc() + time::Duration::MINUTE; // the clocks of the services
    // Counts are per minute: the first one is whole.
    let last = time::Duration::try_from(args.last).unwrap_or(time::Duration::MAX);
    let from =
        until.checked_sub(last).and_then(|from| from.checked_sub(2 * time::Duration::MINUTE));
    let from = from.ok_or_else(|| CliError::usage("--last is too long"))?;
    let classes = session.once.adoption(&mut session.conn, from, until).await?;
    if session.json {
        return output::json(&json!(classes));
    }
    if classes.is_empty() {
        return output::line(
            "no counts: no process keeps a history (PgOnce::keep_history), or there were no calls",
        );
    }
    const HEADING: [&str; 9] = [
        "CLASS",
        "MODE",
        "CALLS",
        "WITH KEY",
        "DUPLICATES",
        "OBSERVED",
        "VALUE",
        "MISMATCHES",
        "GUESSABLE",
    ];
    output::table(&HEADING, &classes.iter().map(cells).collect::<Vec<_>>())
}

fn cells(class: &Adoption) -> Vec<String> {
    vec![
        class.class.clone(),
        class.mode.map_or("default", RolloutMode::as_str).to_owned(),
        grouped(class.calls),
        share(class.keyed, class.calls),
        grouped(class.duplicates),
        grouped(class.observed_duplicates),
        grouped(class.value.saturating_add(class.observed_value)),
        grouped(class.mismatches.saturating_add(class.observed_mismatches)),
        share(class.keys_guessable, class.keys_seen),
    ]
}

fn share(part: u64, all: u64) -> String {
    if all == 0 {
        return "-".to_owned();
    }
    format!("{:.1} %", 100.0 * part as f64 / all as f64)
}
