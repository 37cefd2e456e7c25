//! `pgonce get`.

use std::fs;
use std::path::{Path, PathBuf};

use pgonce::{Filter, Inspected, Key, Progress, Record, Response, Scope, Status};
use serde_json::{Value, json};

use crate::exit::CliError;
use crate::output::{self, at_second};
use crate::session::Session;

/// Show one key: its state and finished steps, without its response
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  pgonce get acme/payments.create order-17
  pgonce get acme/payments.create order-17 --body - | jq")]
pub(crate) struct Args {
    /// The scope, such as acme/payments.create
    scope: String,
    /// The key within the scope
    key: String,
    /// Also write the stored body to FILE; with `-`, print only the body
    #[arg(long, value_name = "FILE")]
    body: Option<PathBuf>,
}

pub(crate) async fn run(session: &mut Session, args: &Args) -> Result<(), CliError> {
    let print_body = args.body.as_deref() == Some(Path::new("-"));
    if print_body && session.json {
        return Err(CliError::usage("--body - prints only the body: remove --json"));
    }
    let (record, response) = match find(session, &args.scope, &args.key).await {
        Ok(found) => (found.record, Some(found.response)),
        Err(error) if error.is_missing_right() && args.body.is_none() => {
            (find_as_auditor(session, args, error).await?, None)
        }
        Err(error) => return Err(error),
    };
    if let (Some(file), Some(response)) = (&args.body, &response) {
        let body = stored_body(&record, response)?;
        if print_body {
            return output::bytes(body);
        }
        fs::write(file, body).map_err(|error| {
            CliError::failed("io", format!("cannot write {}: {error}", file.display()))
        })?;
    }
    let progress = match response {
        Some(_) => progress(session, args).await?,
        None => None,
    };
    if session.json {
        let mut shown = json!(record);
        shown["scope"] = args.scope.as_str().into();
        shown["key"] = args.key.as_str().into();
        if let Some(response) = &response {
            shown["response_headers_bytes"] = response.headers().len().into();
            shown["response_body_bytes"] = response.body().len().into();
        }
        if let Some(progress) = progress {
            shown["steps"] = progress.steps.clone().into();
            shown["progress"] = progress.said::<Value>().ok().flatten().into();
            shown["last_error"] = progress.last_error.into();
        }
        return output::json(&shown);
    }
    let mut lines = lines(&record, response.as_ref());
    if let Some(progress) = progress {
        lines.extend(work_lines(&progress));
    }
    output::pairs(&lines)
}

/// What an auditor may see of the key; returns `refused` if the role may not list keys.
async fn find_as_auditor(
    session: &mut Session,
    args: &Args,
    refused: CliError,
) -> Result<Record, CliError> {
    let (scope, key) = (Scope::new(args.scope.as_str())?, Key::new(args.key.as_str())?);
    let filter = Filter { scope: Some(scope), key: Some(key), ..Filter::default() };
    let mut listed = session.once.list(&mut session.conn, &filter, 1).await.map_err(|_| refused)?;
    listed.pop().map(|listed| listed.record).ok_or_else(unknown)
}

/// How far the work is; `None` if the key is forgotten.
async fn progress(session: &mut Session, args: &Args) -> Result<Option<Progress>, CliError> {
    let (scope, key) = (Scope::new(args.scope.as_str())?, Key::new(args.key.as_str())?);
    Ok(session.once.status(&mut session.conn, &scope, &key).await?)
}

/// Returns the key, or an error if it is unknown.
pub(crate) async fn find(
    session: &mut Session,
    scope: &str,
    key: &str,
) -> Result<Inspected, CliError> {
    let (scope, key) = (Scope::new(scope)?, Key::new(key)?);
    session.once.inspect(&mut session.conn, &scope, &key).await?.ok_or_else(unknown)
}

fn unknown() -> CliError {
    CliError::not_found(
        "no such key in this scope (keys begun in an open transaction are not visible)",
    )
}

/// The key as the operator saw it: as it is now, or unchanged since `get` printed this `seen`.
pub(crate) async fn find_seen(
    session: &mut Session,
    scope: &str,
    key: &str,
    seen: Option<&str>,
) -> Result<Record, CliError> {
    let record = find(session, scope, key).await?.record;
    match seen {
        Some(seen) if seen != record.seen => {
            Err(CliError::refused("the key has changed since `pgonce get` printed this `seen`"))
        }
        _ => Ok(record),
    }
}

fn stored_body<'r>(record: &Record, response: &'r Response) -> Result<&'r [u8], CliError> {
    match record.status {
        Status::Completed | Status::Failed if response.is_omitted() => {
            Err(CliError::not_found("the response was not stored (too large, or marked secret)"))
        }
        Status::Completed | Status::Failed => Ok(response.body()),
        other => Err(CliError::not_found(format!(
            "no response is stored: the operation is {}",
            other.as_str()
        ))),
    }
}

fn lines(record: &Record, response: Option<&Response>) -> Vec<(&'static str, String)> {
    let mut lines = vec![("status", record.status.as_str().to_owned())];
    if let Some(claim) = record.claim {
        lines.push(("claim", claim.as_str().to_owned()));
        lines.push(("lease expires at", at_second(record.lease_expires_at)));
    }
    lines.push(("seen", record.seen.clone()));
    lines.push(("attempt", record.attempt.to_string()));
    lines.push(("fingerprinted", if record.fingerprinted { "yes" } else { "no" }.to_owned()));
    lines.push(("created at", at_second(record.created_at)));
    if let Some(completed_at) = record.completed_at {
        lines.push(("completed at", at_second(completed_at)));
        lines.push((
            "response code",
            record.response_code.map_or("-".to_owned(), |c| c.to_string()),
        ));
        lines.push(("response", content(response)));
    }
    lines.push(("expires at", at_second(record.expires_at)));
    lines
}

/// Lines that only leased work has: steps by name, progress, last error. One line each, whatever they contain.
fn work_lines(progress: &Progress) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    if !progress.steps.is_empty() {
        lines.push(("steps done", progress.steps.join(", ")));
    }
    match progress.said::<Value>() {
        Ok(Some(said)) => lines.push(("progress", said.to_string())),
        Ok(None) => {}
        Err(_) => lines.push(("progress", "not JSON".to_owned())),
    }
    if let Some(error) = &progress.last_error {
        lines.push(("last error", format!("{error:?}")));
    }
    lines
}

fn content(response: Option<&Response>) -> String {
    let Some(response) = response else { return "hidden from this role".to_owned() };
    if response.is_omitted() {
        return "not stored".to_owned();
    }
    let (headers, body) = (response.headers().len(), response.body().len());
    format!("{headers} bytes of headers, {body} bytes of body")
}
