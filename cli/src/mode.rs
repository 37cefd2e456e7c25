//! `pgonce mode`.

use pgonce::sqlx::Connection;
use pgonce::{Class, RolloutChange, RolloutMode};
use serde_json::json;

use crate::exit::CliError;
use crate::output;
use crate::session::Session;

/// Show or set how far the protection of a class is switched on: off, observe, optional or required
#[derive(clap::Args)]
#[command(after_help = "\
Without CLASS: the classes with a mode. Without MODE: the class's changes, with who and when. Services that read
the modes (Rollout in Rust) follow within a few seconds.

Examples:
  pgonce mode
  pgonce mode payments.create observe
  PGOPTIONS='-c pgonce.actor=ann' pgonce mode payments.create required
  pgonce mode payments.create default")]
pub(crate) struct Args {
    /// The class of operations, such as payments.create or a route's path
    class: Option<String>,
    /// off, observe, optional, required; default: as the service's code says
    #[arg(requires = "class")]
    mode: Option<String>,
}

pub(crate) async fn run(session: &mut Session, args: &Args) -> Result<(), CliError> {
    let Session { once, conn, .. } = session;
    let Some(class) = &args.class else {
        let modes = once.rollout_modes(conn).await?;
        if modes.is_empty() && !session.json {
            return output::line("no class has a mode: services do what their code says");
        }
        return shown(session.json, &modes);
    };
    let class = Class::new(class)?;
    if let Some(mode) = &args.mode {
        let mode = match mode.as_str() {
            "default" => None,
            mode => Some(mode.parse::<RolloutMode>()?),
        };
        let mut tx = conn.begin().await?;
        once.set_mode(&mut tx, &class, mode).await?;
        pgonce::commit(tx).await?;
    }
    let changes = once.rollout_changes(conn, &class, 100).await?;
    if changes.is_empty() && !session.json {
        let class = class.as_str();
        return output::line(format!("{class} has had no mode: services do what their code says"));
    }
    shown(session.json, &changes)
}

fn shown(as_json: bool, changes: &[RolloutChange]) -> Result<(), CliError> {
    if as_json {
        return output::json(&json!(changes));
    }
    const HEADING: [&str; 5] = ["AT", "CLASS", "MODE", "ROLE", "ACTOR"];
    output::table(&HEADING, &changes.iter().map(cells).collect::<Vec<_>>())
}

fn cells(change: &RolloutChange) -> Vec<String> {
    vec![
        output::at(change.at),
        change.class.clone(),
        change.mode.map_or("default", RolloutMode::as_str).to_owned(),
        change.role.clone(),
        // One line, whatever the application has set.
        change.actor.as_ref().map_or("-".to_owned(), |actor| actor.escape_debug().to_string()),
    ]
}
