//! What could go wrong, as `pgonce doctor` says it, and who is behind.

use std::sync::Arc;
use std::time::Duration;

use askama::Template;
use axum::response::Response;
use http::StatusCode;
use pgonce::{Anomaly, ErrorKind, Overview};

use crate::app::{COUNT_MAX, Schema};
use crate::format::{Count, State, lasting};
use crate::page::{Frame, Page, failed, html};
use crate::pages::overview::{ABANDONED_LATE_SECONDS, OVERDUE_LATE_SECONDS};
use crate::problem::Problem;

/// The check of a pooler takes some 30 round trips.
const CHECK_MAX: Duration = Duration::from_secs(10);

#[derive(Template)]
#[template(path = "health.html")]
struct HealthPage {
    frame: Frame,
    findings: Vec<Finding>,
}

/// One thing that was looked at: how it is, and what to do if it is not well.
#[derive(Debug, Clone)]
pub(crate) struct Finding {
    pub(crate) name: &'static str,
    pub(crate) state: State,
    pub(crate) says: String,
    pub(crate) cure: String,
}

impl Finding {
    fn new(
        name: &'static str,
        state: State,
        says: impl Into<String>,
        cure: impl Into<String>,
    ) -> Self {
        Self { name, state, says: says.into(), cure: cure.into() }
    }
}

pub(crate) async fn page(page: Page) -> Response {
    let frame = page.frame("Health", "health").await.updating("health", &[]);
    let (checks, overview) = (page.schema.findings().await, page.schema.overview().await);
    let Some(checks) = checks.value else {
        return failed(frame, checks.problem.unwrap_or_else(Problem::away));
    };
    let mut findings = checks.to_vec();
    if let Some(overview) = &overview.value {
        findings.extend([reaper(overview), recovery(overview)]);
    }
    html(StatusCode::OK, &HealthPage { frame: frame.with(overview.problem), findings })
}

/// What is checked rarely.
pub(crate) async fn find(schema: &Arc<Schema>) -> Result<Vec<Finding>, Problem> {
    let mut found = environment(schema).await?;
    if found.iter().any(|finding| finding.name == "Schema" && finding.state == State::PROBLEM) {
        return Ok(found);
    }
    found.push(audit_trail(schema).await?);
    found.extend(match anomalies(schema).await {
        Err(problem) => vec![Finding::new(
            "Anomalies",
            State::ATTENTION,
            format!("They could not be looked for. {}", problem.says),
            "Run pgonce doctor.",
        )],
        Ok(anomalies) => anomalies,
    });
    Ok(found)
}

async fn audit_trail(schema: &Arc<Schema>) -> Result<Finding, Problem> {
    let mut tx = schema.database.read().await?;
    let says = match schema.once.audit_days_kept(&mut tx).await? {
        Some(days) => format!("It is on, and keeps {days} days."),
        None => "It is off. Actions on this page are log lines.".to_owned(),
    };
    Ok(Finding::new("Audit trail", State::GOOD, says, ""))
}

/// What looks wrong, but for the reaper, which has a line of its own.
async fn anomalies(schema: &Arc<Schema>) -> Result<Vec<Finding>, Problem> {
    let mut tx = schema.database.read().await?;
    let found = schema.once.anomalies(&mut tx).await?;
    let finding = |anomaly: Anomaly| {
        let name = match anomaly.anomaly.as_str() {
            "mismatches" => "Mismatches",
            "duplicates" => "Duplicates",
            "guessable_keys" => "Guessable keys",
            "greedy_scope" => "Greedy scope",
            "late_reaper" => return None,
            _ => "Anomaly",
        };
        let of = anomaly.scope.map_or(String::new(), |scope| format!("Scope {scope}: "));
        let says = format!("{of}{}. {}", anomaly.saw, anomaly.matters);
        Some(Finding::new(name, State::ATTENTION, says, anomaly.remedy))
    };
    Ok(found.into_iter().filter_map(finding).collect())
}

/// Schema, settings and pooler.
async fn environment(schema: &Arc<Schema>) -> Result<Vec<Finding>, Problem> {
    let checked = tokio::time::timeout(CHECK_MAX, schema.once.check(schema.database.pool())).await;
    let checked = checked.map_err(|_| Problem::slow())?;
    let is_schema = |kind| matches!(kind, ErrorKind::SchemaOutdated | ErrorKind::SchemaTooNew);
    Ok(match checked {
        Ok(()) => vec![
            Finding::new("Schema", State::GOOD, "It is up to date.", ""),
            Finding::new(
                "Environment",
                State::GOOD,
                "No setting and no pooler breaks a promise of pgonce.",
                "",
            ),
        ],
        Err(error) if is_schema(error.kind()) => vec![Finding::new(
            "Schema",
            State::PROBLEM,
            error.to_string(),
            "Run pgonce migrate, or update the program that this page runs in.",
        )],
        Err(error) if error.kind() == ErrorKind::Environment => vec![
            Finding::new("Schema", State::GOOD, "It is up to date.", ""),
            Finding::new(
                "Environment",
                State::PROBLEM,
                error.to_string(),
                "Each sentence names its cure. Until then an operation may fail, or happen twice.",
            ),
        ],
        Err(error) => return Err(error.into()),
    })
}

fn reaper(seen: &Overview) -> Finding {
    let overdue = Count { number: seen.overdue, is_capped: seen.overdue >= u64::from(COUNT_MAX) };
    let late = seen.oldest_overdue.unwrap_or_default();
    if late.as_secs() < OVERDUE_LATE_SECONDS {
        let says = match seen.oldest_overdue {
            Some(late) => format!(
                "{overdue} forgotten {} for it, the oldest for {}.",
                overdue.of("key waits", "keys wait"),
                lasting(late)
            ),
            None => "No forgotten key waits for it.".to_owned(),
        };
        return Finding::new("Reaper", State::GOOD, says, "");
    }
    Finding::new(
        "Reaper",
        State::ATTENTION,
        format!(
            "{overdue} {} past their retention and not deleted, the oldest for {}. The table grows.",
            overdue.of("key is", "keys are"),
            lasting(late)
        ),
        "Run pgonce reap in a shell now, with DATABASE_URL set. It deletes in small batches, and can be stopped at any time. It \
         changes no answer: a key past its retention counts as new already. Then see why no reaper did it: run a Reaper \
         in the service (its log says reaped each minute), or pgonce reap from cron. If one runs and this time grows, \
         look for transactions that stay open, or add a second reaper. The table's files keep their size; the room in \
         them is used again.",
    )
}

fn recovery(seen: &Overview) -> Finding {
    let abandoned = Count::part(seen.abandoned, seen.unfinished_capped);
    let late = seen.longest_abandoned.unwrap_or_default();
    if abandoned.is_zero() || late.as_secs() < ABANDONED_LATE_SECONDS {
        return Finding::new(
            "Recovery",
            State::GOOD,
            "No abandoned key waits for long.".to_owned(),
            "",
        );
    }
    Finding::new(
        "Recovery",
        State::ATTENTION,
        format!(
            "{abandoned} abandoned {} to be continued, the first for {}.",
            abandoned.of("key waits", "keys wait"),
            lasting(late)
        ),
        "Either some work fails every time (see the errors of the keys under Abandoned and held), \
               or no Recovery covers their scopes and no client retries.",
    )
}
