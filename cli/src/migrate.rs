//! `pgonce migrate`.

use serde_json::json;

use crate::exit::CliError;
use crate::output;
use crate::session::{Global, Session};

/// Create or update the schema
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  pgonce migrate
  pgonce migrate --print | psql -v ON_ERROR_STOP=1 mydb
  pgonce migrate --print > migrations/20270101_pgonce.sql")]
pub(crate) struct Args {
    /// Print the SQL for your own migration tool instead of running it. Needs no database. The SQL does nothing if the
    /// schema is up to date
    #[arg(long)]
    pub(crate) print: bool,
}

pub(crate) fn print(global: &Global) -> Result<(), CliError> {
    let sql = global.once()?.migration_sql();
    if global.json {
        return output::json(&json!({ "schema": global.schema(), "sql": sql }));
    }
    output::bytes(sql.as_bytes())
}

pub(crate) async fn run(session: &mut Session) -> Result<(), CliError> {
    let migrated = session.once.migrate(&mut session.conn).await?;
    let (schema, from, to) = (&session.schema, migrated.from, migrated.to);
    if session.json {
        return output::json(&json!({
            "schema": schema,
            "from": from,
            "to": to,
            "functions_replaced": migrated.functions_replaced,
        }));
    }
    output::line(match migrated.functions_replaced {
        false => format!("schema {schema} is up to date (version {to})"),
        true if from == 0 => format!("schema {schema} created (version {to})"),
        true if from == to => format!("schema {schema} has new functions (version {to})"),
        true => format!("schema {schema} migrated from version {from} to {to}"),
    })
}
