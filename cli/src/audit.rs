//! `pgonce audit`.

use pgonce::{AuditLine, Key, Scope};
use serde_json::json;

use crate::exit::CliError;
use crate::output;
use crate::session::Session;

/// Show the audit trail of one key: which transitions it made, when, and by whom
#[derive(clap::Args)]
#[command(after_help = "\
Switch the trail on with `pgonce migrate --audit DAYS`. ACTOR is whom the application named in the setting
pgonce.actor.

Example:
  pgonce audit acme/payments.create order-17")]
pub(crate) struct Args {
    /// The scope, such as acme/payments.create
    scope: String,
    /// The key within the scope
    key: String,
    /// Print the last N lines (1 to 10,000)
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: u32,
}

pub(crate) async fn run(session: &mut Session, args: &Args) -> Result<(), CliError> {
    let (scope, key) = (Scope::new(args.scope.as_str())?, Key::new(args.key.as_str())?);
    let Session { once, conn, .. } = session;
    let lines = once.audit(conn, &scope, &key, args.limit).await?;
    if lines.is_empty() {
        let why = match once.audit_days_kept(conn).await? {
            None => "the audit trail is off: switch it on with `pgonce migrate --audit DAYS`",
            Some(_) => {
                "no such key in the audit trail: it never had one, or its lines were dropped"
            }
        };
        return Err(CliError::not_found(why));
    }
    if session.json {
        return output::json(&json!(lines));
    }
    const HEADING: [&str; 6] = ["AT", "ACTION", "ATTEMPT", "ROLE", "ACTOR", "SEEN"];
    output::table(&HEADING, &lines.iter().map(cells).collect::<Vec<_>>())
}

fn cells(line: &AuditLine) -> Vec<String> {
    vec![
        output::at(line.at),
        line.action.clone(),
        line.attempt.to_string(),
        line.role.clone(),
        // One line, whatever the application has set.
        line.actor.as_ref().map_or("-".to_owned(), |actor| actor.escape_debug().to_string()),
        line.seen.clone(),
    ]
}
