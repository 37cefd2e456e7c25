//! `pgonce inbox`.

use clap::Subcommand;
use pgonce::Inbox;
use serde_json::json;

use crate::exit::CliError;
use crate::output;
use crate::session::Session;

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
    },
}

pub(crate) async fn run(session: &mut Session, args: &Args) -> Result<(), CliError> {
    let Command::Redrive { consumer, id } = &args.command;
    let inbox = Inbox::new(&session.once, consumer.as_str())?;
    inbox.redrive(&mut session.conn, id).await?;
    match session.json {
        true => output::json(&json!({ "redriven": true, "consumer": consumer, "id": id })),
        false => output::line("redriven; it is handled when it is delivered again"),
    }
}
