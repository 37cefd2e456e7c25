//! `pgonce doctor`.

use std::time::Duration;

use humantime::format_duration;
use pgonce::sqlx::PgPool;
use pgonce::{ErrorKind, Inbox, PgOnce};
use serde_json::{Value, json};

use crate::exit::CliError;
use crate::output;
use crate::session::Global;

/// Find what could make an operation happen twice; exits with 1 if it finds a problem
#[derive(clap::Args)]
#[command(after_help = "\
The horizon is the longest time after which the broker, or a person with a dead-letter queue, may redeliver a
message. The inbox must remember messages at least that long; doctor reads how long from the newest message.

Example:
  pgonce doctor --horizon orders=14d --horizon invoices=36h")]
pub(crate) struct Args {
    /// The broker's horizon for a consumer, such as orders=14d; may be repeated
    #[arg(long, value_name = "CONSUMER=TIME", value_parser = horizon)]
    horizon: Vec<(String, Duration)>,
}

struct Finding {
    check: &'static str,
    ok: bool,
    says: String,
}

pub(crate) async fn run(global: &Global, args: &Args) -> Result<(), CliError> {
    let (once, pool) = (global.once()?, global.pool().await?);
    let environment = match once.check(&pool).await {
        Ok(()) => (true, "no setting and no pooler breaks a promise of pgonce".to_owned()),
        Err(error) if error.kind() == ErrorKind::Environment => (false, error.to_string()),
        Err(error) => return Err(error.into()),
    };
    let says = format!("schema {} is up to date", global.schema());
    let mut findings = vec![
        Finding { check: "schema", ok: true, says },
        Finding { check: "environment", ok: environment.0, says: environment.1 },
    ];
    for (consumer, horizon) in &args.horizon {
        findings.push(inbox(&once, &pool, consumer, *horizon).await?);
    }
    let shown =
        |finding: &Finding| json!({"check": finding.check, "ok": finding.ok, "says": finding.says});
    match global.json {
        true => output::json(&Value::Array(findings.iter().map(shown).collect()))?,
        false => findings.iter().try_for_each(|finding| {
            output::line(format!(
                "{}  {}",
                if finding.ok { "ok   " } else { "ERROR" },
                finding.says
            ))
        })?,
    }
    match findings.iter().all(|finding| finding.ok) {
        true => Ok(()),
        false => Err(CliError::already_said()),
    }
}

/// Checks that an inbox remembers messages at least as long as the broker may redeliver them.
async fn inbox(
    once: &PgOnce,
    pool: &PgPool,
    consumer: &str,
    horizon: Duration,
) -> Result<Finding, CliError> {
    let inbox = Inbox::new(once, consumer)?;
    let Some(retention) = inbox.remembers(&mut *pool.acquire().await?).await? else {
        let says = format!("inbox {consumer}: no messages, nothing to compare");
        return Ok(Finding { check: "inbox", ok: true, says });
    };
    let (remembers, may) = (format_duration(retention), format_duration(horizon));
    let ok = retention >= horizon;
    let says = match ok {
        true => format!(
            "inbox {consumer}: remembers messages for {remembers}, the broker may redeliver for {may}"
        ),
        false => format!(
            "inbox {consumer}: forgets messages after {remembers}, but the broker may redeliver for {may}. \
             A message could then take effect twice. Raise the retention in the inbox's Policy to at least {may}"
        ),
    };
    Ok(Finding { check: "inbox", ok, says })
}

fn horizon(text: &str) -> Result<(String, Duration), String> {
    let (consumer, time) =
        text.rsplit_once('=').ok_or("expected CONSUMER=TIME, such as orders=14d")?;
    let time = humantime::parse_duration(time).map_err(|error| error.to_string())?;
    Ok((consumer.to_owned(), time))
}
