//! `pgonce inbox`.

use clap::Subcommand;
use pgonce::Inbox;
use pgonce::sqlx::Connection;
use serde_json::json;

use crate::exit::CliError;
use crate::session::Session;
use crate::{get, output};

/// Manage the messages of a consumer
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Let a dead message run again at its next delivery, with all its attempts
    #[command(after_help = "\
First fix the cause, then redrive, then have the broker deliver the message again: from its dead-letter queue,
or by hand. If the message is done or being handled, nothing happens and the exit code is 4. pgonce get
CONSUMER ID shows its last error.

Example:
  pgonce inbox redrive orders 0193-ac42")]
    Redrive {
        /// The consumer's name, which is the scope of its keys
        consumer: String,
        /// The message's id
        id: String,
        /// Refuse if the message has changed since `pgonce get` printed this `seen`
        #[arg(long, value_name = "SEEN")]
        seen: Option<String>,
    },
}

pub(crate) async fn run(session: &mut Session, args: &Args) -> Result<(), CliError> {
    let Command::Redrive { consumer, id, seen } = &args.command;
    let inbox = Inbox::new(&session.once, consumer.as_str())?;
    let record = get::find_seen(session, consumer, id, seen.as_deref()).await?;
    let mut tx = session.conn.begin().await?;
    inbox.redrive(&mut tx, id, &record).await?;
    pgonce::commit(tx).await?;
    match session.json {
        true => output::json(&json!({ "redriven": true, "consumer": consumer, "id": id })),
        false => output::line("redriven; the message will be handled at its next delivery"),
    }
}
