//! `pgonce doctor`.

use std::time::Duration;

use humantime::format_duration;
use pgonce::sqlx::PgConnection;
use pgonce::{ErrorKind, Inbox, PgOnce};
use serde_json::{Value, json};

use crate::exit::CliError;
use crate::session::Global;
use crate::{migrate, output};

/// Find what could make an operation happen twice (ERROR: exit code 1), and what looks wrong otherwise (LOOK)
#[derive(clap::Args)]
#[command(after_help = "\
The horizon is the longest time after which the broker, or a person with a dead-letter queue, may redeliver a
message. The inbox must remember messages at least that long; doctor reads how long from the newest message.

LOOK: a scope whose share of mismatches or duplicates has jumped (known only if processes keep a history), keys that are
easy to guess, a reaper that is late or missing, a scope that holds most leased keys in progress. Exit code 0.

Example:
  pgonce doctor --horizon orders=14d --horizon invoices=36h")]
pub(crate) struct Args {
    /// The broker's horizon for a consumer, such as orders=14d; may be repeated
    #[arg(long, value_name = "CONSUMER=TIME", value_parser = horizon)]
    horizon: Vec<(String, Duration)>,
}

struct Finding {
    check: String,
    level: Level,
    says: String,
}

#[derive(Clone, Copy, PartialEq)]
enum Level {
    Ok,
    /// Breaks no promise, but may be a problem.
    Look,
    Error,
}

impl Finding {
    fn new(check: &str, ok: bool, says: String) -> Self {
        let level = if ok { Level::Ok } else { Level::Error };
        Self { check: check.to_owned(), level, says }
    }
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
        Finding::new("schema", true, says),
        Finding::new("environment", environment.0, environment.1),
    ];
    let conn = &mut *pool.acquire().await?;
    let audit = migrate::said(once.audit_days_kept(conn).await?);
    findings.push(Finding::new("audit", true, audit));
    for (consumer, horizon) in &args.horizon {
        findings.push(inbox(&once, conn, consumer, *horizon).await?);
    }
    findings.extend(once.anomalies(conn).await?.into_iter().map(|found| {
        let of = found.scope.map_or(String::new(), |scope| format!("scope {scope}: "));
        let says = format!("{of}{}. {} {}", found.saw, found.matters, found.remedy);
        Finding { check: found.anomaly, level: Level::Look, says }
    }));
    let shown = |finding: &Finding| {
        let (ok, look) = (finding.level != Level::Error, finding.level == Level::Look);
        json!({"check": finding.check, "ok": ok, "look": look, "says": finding.says})
    };
    match global.json {
        true => output::json(&Value::Array(findings.iter().map(shown).collect()))?,
        false => findings.iter().try_for_each(|finding| {
            output::line(format!(
                "{}  {}",
                match finding.level {
                    Level::Ok => "ok   ",
                    Level::Look => "LOOK ",
                    Level::Error => "ERROR",
                },
                finding.says
            ))
        })?,
    }
    match findings.iter().any(|finding| finding.level == Level::Error) {
        true => Err(CliError::already_said()),
        false => Ok(()),
    }
}

/// Checks that an inbox remembers messages at least as long as the broker may redeliver them.
async fn inbox(
    once: &PgOnce,
    conn: &mut PgConnection,
    consumer: &str,
    horizon: Duration,
) -> Result<Finding, CliError> {
    let inbox = Inbox::new(once, consumer)?;
    let Some(retention) = inbox.remembers(conn).await? else {
        let says = format!("inbox {consumer}: no messages, nothing to compare");
        return Ok(Finding::new("inbox", true, says));
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
    Ok(Finding::new("inbox", ok, says))
}

fn horizon(text: &str) -> Result<(String, Duration), String> {
    let (consumer, time) =
        text.rsplit_once('=').ok_or("expected CONSUMER=TIME, such as orders=14d")?;
    let time = humantime::parse_duration(time).map_err(|error| error.to_string())?;
    Ok((consumer.to_owned(), time))
}
