//! `pgonce check`.

use serde_json::json;

use crate::exit::CliError;
use crate::output;
use crate::session::Global;

/// Check that the schema fits this program (if not: exit code 5), and that the server's settings and poolers are safe
/// (if not: exit code 1)
#[derive(clap::Args)]
#[command(after_help = "Example:\n  pgonce check || pgonce migrate")]
pub(crate) struct Args {}

pub(crate) async fn run(global: &Global) -> Result<(), CliError> {
    global.once()?.check(&global.pool().await?).await?;
    let schema = global.schema();
    match global.json {
        true => output::json(&json!({ "schema": schema, "ok": true })),
        false => output::line(format!("schema {schema} is up to date")),
    }
}
