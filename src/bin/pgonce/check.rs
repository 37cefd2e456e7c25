//! `pgonce check`.

use serde_json::json;

use crate::exit::CliError;
use crate::output;
use crate::session::Session;

/// Check that the schema fits this program; exits with 5 when it does not
#[derive(clap::Args)]
#[command(after_help = "Example:\n  pgonce check || pgonce migrate")]
pub(crate) struct Args {}

pub(crate) async fn run(session: &mut Session) -> Result<(), CliError> {
    session.once.check(&mut session.conn).await?;
    let schema = &session.schema;
    match session.json {
        true => output::json(&json!({ "schema": schema, "ok": true })),
        false => output::line(format!("schema {schema} is up to date")),
    }
}
