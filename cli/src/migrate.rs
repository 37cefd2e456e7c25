//! `pgonce migrate`.

use pgonce::sqlx::Connection;
use serde_json::json;

use crate::exit::CliError;
use crate::output;
use crate::session::{Global, Session};

/// Create or update the schema
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  pgonce migrate
  pgonce migrate --audit 90
  pgonce migrate --print | psql -v ON_ERROR_STOP=1 mydb
  pgonce migrate --print > migrations/20270101_pgonce.sql")]
pub(crate) struct Args {
    /// Print the SQL for your own migration tool instead of running it. Needs no database. The SQL does nothing if the
    /// schema is up to date
    #[arg(long)]
    pub(crate) print: bool,
    /// Also switch the audit trail on: each transition of a key leaves a line, kept for DAYS days (1 to 366). It stays on
    /// until --no-audit. Needs the owner of the tables
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=366))]
    audit: Option<u32>,
    /// Also switch the audit trail off; its lines stay
    #[arg(long, conflicts_with = "audit")]
    no_audit: bool,
}

pub(crate) fn print(global: &Global, args: &Args) -> Result<(), CliError> {
    let mut sql = global.once()?.migration_sql();
    let schema = global.schema();
    if let Some(days) = args.audit {
        sql.push_str(&format!("select \"{schema}\".audit_on({days});\n"));
    } else if args.no_audit {
        sql.push_str(&format!("select \"{schema}\".audit_off();\n"));
    }
    if global.json {
        return output::json(&json!({ "schema": global.schema(), "sql": sql }));
    }
    output::bytes(sql.as_bytes())
}

pub(crate) async fn run(session: &mut Session, args: &Args) -> Result<(), CliError> {
    let Session { once, conn, .. } = session;
    let migrated = once.migrate(conn).await?;
    if args.audit.is_some() || args.no_audit {
        let mut tx = conn.begin().await?;
        match args.audit {
            Some(days) => once.audit_on(&mut tx, days).await?,
            None => once.audit_off(&mut tx).await?,
        }
        pgonce::commit(tx).await?;
    }
    let audit_days = once.audit_days_kept(conn).await?;
    let (schema, from, to) = (&session.schema, migrated.from, migrated.to);
    if session.json {
        return output::json(&json!({
            "schema": schema,
            "from": from,
            "to": to,
            "functions_replaced": migrated.functions_replaced,
            "audit_days_kept": audit_days,
        }));
    }
    if args.audit.is_some() || args.no_audit {
        output::line(said(audit_days))?;
    }
    output::line(match migrated.functions_replaced {
        false => format!("schema {schema} is up to date (version {to})"),
        true if from == 0 => format!("schema {schema} created (version {to})"),
        true if from == to => format!("schema {schema} has new functions (version {to})"),
        true => format!("schema {schema} migrated from version {from} to {to}"),
    })
}

/// For `doctor` too.
pub(crate) fn said(audit_days: Option<u32>) -> String {
    match audit_days {
        None => "the audit trail is off".to_owned(),
        Some(days) => format!("the audit trail is on, and kept for {days} days"),
    }
}
