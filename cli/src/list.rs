//! `pgonce list`.

use clap::ValueEnum;
use pgonce::{ClaimState, Filter, Listed, Scope, Status};
use serde_json::json;

use crate::exit::CliError;
use crate::output::{self, at_second};
use crate::session::Session;

/// List keys, ordered by scope and key
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  pgonce list --scope acme/payments.create --status failed
  pgonce list --abandoned --json")]
pub(crate) struct Args {
    /// Only keys in this scope
    #[arg(long)]
    scope: Option<String>,
    /// Only keys with this status
    #[arg(long)]
    status: Option<StatusWord>,
    /// Only unfinished keys whose claim is in this state
    #[arg(long)]
    claim: Option<ClaimWord>,
    /// Only abandoned keys (leased, unfinished, without a live holder), earliest lapse first; reads no other keys
    #[arg(long, conflicts_with_all = ["scope", "status", "claim"])]
    abandoned: bool,
    /// Print at most N keys
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: u32,
}

#[derive(Clone, Copy, ValueEnum)]
#[value(rename_all = "snake_case")]
enum StatusWord {
    InProgress,
    Completed,
    Failed,
}

#[derive(Clone, Copy, ValueEnum)]
enum ClaimWord {
    Live,
    Lapsed,
    Released,
}

pub(crate) async fn run(session: &mut Session, args: &Args) -> Result<(), CliError> {
    let Session { once, conn, .. } = session;
    let listed = match args.abandoned {
        true => once.abandoned(conn, args.limit).await?,
        false => once.list(conn, &filter(args)?, args.limit).await?,
    };
    if session.json {
        return output::json(&json!(listed));
    }
    const HEADING: [&str; 7] = ["SCOPE", "KEY", "STATUS", "CLAIM", "ATTEMPT", "CREATED", "EXPIRES"];
    output::table(&HEADING, &listed.iter().map(cells).collect::<Vec<_>>())?;
    if u32::try_from(listed.len()).is_ok_and(|shown| shown == args.limit) {
        eprintln!("Stopped at --limit {}; there may be more.", args.limit);
    }
    Ok(())
}

fn filter(args: &Args) -> Result<Filter, CliError> {
    Ok(Filter {
        scope: args.scope.as_deref().map(Scope::new).transpose()?,
        key: None,
        status: args.status.map(|word| match word {
            StatusWord::InProgress => Status::InProgress,
            StatusWord::Completed => Status::Completed,
            StatusWord::Failed => Status::Failed,
        }),
        claim: args.claim.map(|word| match word {
            ClaimWord::Live => ClaimState::Live,
            ClaimWord::Lapsed => ClaimState::Lapsed,
            ClaimWord::Released => ClaimState::Released,
        }),
    })
}

fn cells(row: &Listed) -> Vec<String> {
    let record = &row.record;
    vec![
        row.scope.clone(),
        row.key.clone(),
        record.status.as_str().to_owned(),
        record.claim.map_or("-", ClaimState::as_str).to_owned(),
        record.attempt.to_string(),
        at_second(record.created_at),
        at_second(record.expires_at),
    ]
}
