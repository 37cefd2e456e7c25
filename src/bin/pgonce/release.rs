//! `pgonce release`.

use std::io::{self, IsTerminal};

use pgonce::{ClaimState, Key, Record, Scope, Status};
use serde_json::json;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::exit::CliError;
use crate::session::Session;
use crate::{get, output};

/// Give back the claim on a key whose holder is gone, so that it can be begun again at once
#[derive(clap::Args)]
#[command(after_help = "\
Only a key in progress has a claim. What is released is the claim that was shown: if it changes
hands or is finished in the meantime, nothing happens and the exit code is 4.

Example:
  pgonce release acme/charges.create order-17")]
pub(crate) struct Args {
    /// The scope, such as acme/payments.create
    scope: String,
    /// The key within the scope
    key: String,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

pub(crate) async fn run(session: &mut Session, args: &Args) -> Result<(), CliError> {
    let (record, _) = get::find(session, &args.scope, &args.key).await?;
    let token = claim(&record)?;
    if !args.yes {
        confirm(args, &record)?;
    }
    let (scope, key) = (Scope::new(args.scope.as_str())?, Key::new(args.key.as_str())?);
    session.once.release(&mut session.conn, &scope, &key, token).await?;
    if session.json {
        return output::json(&json!({
            "released": true,
            "scope": args.scope,
            "key": args.key,
            "token": token.to_string(),
            "attempt": record.attempt,
        }));
    }
    output::line(format!("released attempt {}; the key can be begun again", record.attempt))
}

/// The token of a claim that can be released.
fn claim(record: &Record) -> Result<Uuid, CliError> {
    match (record.status, record.token) {
        (Status::InProgress, Some(token)) => Ok(token),
        (Status::InProgress, None) => {
            Err(CliError::refused("nothing to release: the claim was released before"))
        }
        (status, _) => {
            let status = status.as_str();
            Err(CliError::refused(format!("nothing to release: the operation is {status}")))
        }
    }
}

/// Shows what would be released and asks. The answer must come from a person.
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
            "The claim is live until {lease_end}: its holder may be at work, and the work may then \
             happen twice."
        ),
        _ => eprintln!("The claim lapsed {} ago ({lease_end}).", age(record.lease_expires_at)),
    }
    if !io::stdin().is_terminal() {
        return Err(CliError::refused("not confirmed: pass --yes, or run it in a terminal"));
    }
    eprint!("Release it? [y/N] ");
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).map_err(|error| CliError::failed("io", error))?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(CliError::refused("not confirmed")),
    }
}
