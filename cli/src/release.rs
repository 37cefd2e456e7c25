//! `pgonce release`.

use std::io::{self, IsTerminal};

use pgonce::sqlx::Connection;
use pgonce::{ClaimState, Key, Record, Scope, Status};
use serde_json::json;
use time::OffsetDateTime;

use crate::exit::CliError;
use crate::session::Session;
use crate::{get, output};

/// Release the claim of a holder that is gone, so that the next caller can begin the key at once
#[derive(clap::Args)]
#[command(after_help = "\
Only a key in progress has a claim. The command shows the claim and asks for confirmation. If the key changes
in the meantime, nothing happens and the exit code is 4.

Example:
  pgonce release acme/charges.create order-17")]
pub(crate) struct Args {
    /// The scope, such as acme/payments.create
    scope: String,
    /// The key within the scope
    key: String,
    /// Refuse if the key has changed since `pgonce get` printed this `seen`
    #[arg(long, value_name = "SEEN")]
    seen: Option<String>,
    /// Do not ask for confirmation
    #[arg(long)]
    yes: bool,
}

pub(crate) async fn run(session: &mut Session, args: &Args) -> Result<(), CliError> {
    let record = get::find_seen(session, &args.scope, &args.key, args.seen.as_deref()).await?;
    refuse_without_claim(&record)?;
    if !args.yes {
        confirm(args, &record)?;
    }
    let (scope, key) = (Scope::new(args.scope.as_str())?, Key::new(args.key.as_str())?);
    let mut tx = session.conn.begin().await?;
    session.once.revoke_claim(&mut tx, &scope, &key, &record).await?;
    pgonce::commit(tx).await?;
    if session.json {
        return output::json(&json!({
            "released": true,
            "scope": args.scope,
            "key": args.key,
            "attempt": record.attempt,
        }));
    }
    output::line(format!("released attempt {}; the next caller can begin the key", record.attempt))
}

/// Refuses a key without a claim to release. `revoke_claim` checks again, under the key's lock.
fn refuse_without_claim(record: &Record) -> Result<(), CliError> {
    match (record.status, record.claim) {
        (Status::InProgress, Some(ClaimState::Released)) => {
            Err(CliError::refused("nothing to release: the claim is already released"))
        }
        (Status::InProgress, _) => Ok(()),
        (status, _) => {
            let status = status.as_str();
            Err(CliError::refused(format!("nothing to release: the operation is {status}")))
        }
    }
}

/// Shows the claim and asks for confirmation. A person must answer.
fn confirm(args: &Args, record: &Record) -> Result<(), CliError> {
    let age = |since: OffsetDateTime| {
        let age = (OffsetDateTime::now_utc() - since).try_into().unwrap_or_default();
        output::duration(age)
    };
    eprintln!("scope {}, key {}", args.scope, args.key);
    eprintln!("attempt {}, first begun {} ago", record.attempt, age(record.created_at));
    let lease_end = output::at_second(record.lease_expires_at);
    match record.claim {
        Some(ClaimState::Live) => eprintln!(
            "The claim is live until {lease_end}: its holder may still be at work. If you release the \
             claim, the work may happen twice."
        ),
        _ => eprintln!("The claim lapsed {} ago ({lease_end}).", age(record.lease_expires_at)),
    }
    if !io::stdin().is_terminal() {
        return Err(CliError::refused("not confirmed: pass --yes, or run pgonce in a terminal"));
    }
    eprint!("Release it? [y/N] ");
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).map_err(|error| CliError::failed("io", error))?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(CliError::refused("not confirmed")),
    }
}
