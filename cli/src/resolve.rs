//! `pgonce resolve`.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use pgonce::sqlx::Connection;
use pgonce::{ClaimState, Key, Record, Response, Scope, Status};
use serde_json::json;

use crate::exit::CliError;
use crate::session::Session;
use crate::{get, output};

/// Decide what becomes of a key that waits for an operator
#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("decision").required(true))]
#[command(after_help = "\
The key must be in progress with no holder at work: held, lapsed, released, or begun in a transaction that
was committed without complete. First find out what the work has done (pgonce get shows its finished steps).
Retries get FILE byte for byte. For run_leased, FILE is the JSON of the value that the work returns. Afterwards
the last holder can no longer write, even if it is alive. If the key changes in the meantime, nothing happens
and the exit code is 4.

Examples:
  echo '\"receipt 7\"' | pgonce resolve acme/orders.checkout order-17 --complete -
  pgonce resolve acme/orders.checkout order-17 --fail declined.json --code 402
  pgonce resolve acme/orders.checkout order-17 --release")]
pub(crate) struct Args {
    /// The scope, such as acme/orders.checkout
    scope: String,
    /// The key within the scope
    key: String,
    /// The work is done: retries get FILE (`-`: standard input)
    #[arg(long, value_name = "FILE", group = "decision")]
    complete: Option<PathBuf>,
    /// The work has failed for good: retries get FILE as a failure (`-`: standard input)
    #[arg(long, value_name = "FILE", group = "decision")]
    fail: Option<PathBuf>,
    /// The work may run again, without its finished steps and with all its attempts
    #[arg(long, group = "decision")]
    release: bool,
    /// Refuse if the key has changed since `pgonce get` printed this `seen`
    #[arg(long, value_name = "SEEN")]
    seen: Option<String>,
    /// The response's code, such as an HTTP status
    #[arg(long, value_name = "N", conflicts_with = "release")]
    code: Option<i32>,
}

pub(crate) async fn run(session: &mut Session, args: &Args) -> Result<(), CliError> {
    let (scope, key) = (Scope::new(args.scope.as_str())?, Key::new(args.key.as_str())?);
    // The operator's response is stored, whatever its size.
    let once = session.once.clone().response_bytes_max(u32::MAX);
    let seen = get::find_seen(session, &args.scope, &args.key, args.seen.as_deref()).await?;
    waits(&seen)?;
    let mut response = match args.complete.as_deref().or(args.fail.as_deref()) {
        Some(file) => Response::bytes(read(file)?),
        None => Response::empty(),
    };
    if let Some(code) = args.code {
        response = response.with_code(code);
    }
    let bytes = response.body().len();
    let mut tx = session.conn.begin().await?;
    let claim = once.take_over_claim(&mut tx, &scope, &key, &seen).await?;
    let decision = match (&args.complete, &args.fail) {
        (Some(_), _) => claim.complete(&mut tx, response).await.map(|()| "completed"),
        (_, Some(_)) => claim.fail(&mut tx, response).await.map(|()| "failed"),
        _ => claim.release(&mut tx).await.map(|()| "released"),
    }?;
    pgonce::commit(tx).await?;
    if session.json {
        return output::json(&json!({
            "resolved": decision,
            "scope": args.scope,
            "key": args.key,
            "attempt": seen.attempt,
            "response_code": args.code,
            "response_body_bytes": (!args.release).then_some(bytes),
        }));
    }
    let attempt = seen.attempt;
    output::line(match decision {
        "released" => {
            format!("released after attempt {attempt}; the next begin runs the work again")
        }
        _ => format!("{decision} after attempt {attempt}; retries get these {bytes} bytes"),
    })
}

/// Refuses a key that does not wait for an operator. `take_over_claim` checks again, under the key's lock.
fn waits(seen: &Record) -> Result<(), CliError> {
    match (seen.status, seen.claim) {
        // A transactional claim, committed without complete: its holder ended with its transaction.
        (Status::InProgress, Some(ClaimState::Live))
            if seen.lease_expires_at == seen.expires_at =>
        {
            Ok(())
        }
        (Status::InProgress, Some(ClaimState::Live)) => Err(CliError::refused(format!(
            "nothing to resolve: the claim is live until {}, and its holder may still be at work",
            output::at_second(seen.lease_expires_at)
        ))),
        (Status::InProgress, _) => Ok(()),
        (status, _) => Err(CliError::refused(format!(
            "nothing to resolve: the operation is {}",
            status.as_str()
        ))),
    }
}

fn read(file: &Path) -> Result<Vec<u8>, CliError> {
    let content = if file == Path::new("-") {
        let mut content = Vec::new();
        io::stdin().lock().read_to_end(&mut content).map(|_| content)
    } else {
        fs::read(file)
    };
    content
        .map_err(|error| CliError::failed("io", format!("cannot read {}: {error}", file.display())))
}
