//! `pgonce inbox`.

use clap::Subcommand;
use pgonce::Inbox;
use pgonce::sqlx::Connection;
use serde_json::json;

use crate::exit::CliError;
use crate::session::Session;
use crate::{get, output};

/// Look after the messages of a consumer
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Let a dead message be handled again, with all its attempts, when it is delivered again
    #[command(after_help = "\
Mend the cause first, then redrive, then have the broker deliver it again: from its dead-letter queue, or by
hand. If it is done, or being handled, nothing happens and the exit code is 4. pgonce get CONSUMER ID shows
how it failed last.

Example:
  pgonce inbox redrive orders 0193-ac42")]
    Redrive {
        /// The consumer's name, which is the scope of its keys
        consumer: String,
        /// The message's id
        id: String,
        /// Refuse unless the message is as `pgonce get` showed it, with this value of `seen`
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
        false => output::line("redriven; it is handled when it is delivered again"),
    }
}
