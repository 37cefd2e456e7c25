//! `pgonce stats`.

use serde_json::json;

use crate::exit::CliError;
use crate::output::{self, grouped};
use crate::session::Session;

/// Count keys by state
#[derive(clap::Args)]
#[command(after_help = "Example:\n  pgonce stats --json | jq .lapsed")]
pub(crate) struct Args {}

pub(crate) async fn run(session: &mut Session) -> Result<(), CliError> {
    let stats = session.once.stats(&mut session.conn).await?;
    if session.json {
        return output::json(&json!(stats));
    }
    let oldest = stats.oldest_in_progress.map_or("-".to_owned(), output::duration);
    output::pairs(&[
        ("in progress, claim live", grouped(stats.live)),
        ("in progress, claim lapsed", grouped(stats.lapsed)),
        ("in progress, claim released", grouped(stats.released)),
        ("completed", grouped(stats.completed)),
        ("failed", grouped(stats.failed)),
        ("overdue, not yet reaped", grouped(stats.overdue)),
        ("oldest in progress", oldest),
        ("size of the table", output::size(stats.table_bytes)),
        ("size of its indexes", output::size(stats.index_bytes)),
    ])
}
