//! Outcomes over time, from the history that services record.

use std::sync::Arc;
use std::time::Duration;

use pgonce::{HistoryBucket, HistoryCounts, HistoryQuery, HistoryScope};
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::app::Schema;
use crate::format::grouped;
use crate::problem::Problem;

const DAY: time::Duration = time::Duration::DAY;
const STEP: Duration = Duration::from_secs(300);
const SCOPES_MAX: u32 = 10;

/// The last day.
pub(crate) struct Charts {
    /// For the script that draws it: times, and series of calls per step.
    pub(crate) outcomes: String,
    pub(crate) duplicates: String,
    pub(crate) replay_rate: String,
    pub(crate) value: Option<String>,
    /// Those with the most calls of the last hour.
    pub(crate) scopes: Vec<ScopeCalls>,
}

pub(crate) struct ScopeCalls {
    pub(crate) scope: String,
    pub(crate) class: String,
    pub(crate) counts: Vec<String>,
}

/// `None`: nothing was recorded, or the page's role may not read it.
pub(crate) async fn read(schema: &Arc<Schema>) -> Result<Option<Charts>, Problem> {
    match read_all(schema).await {
        Err(problem) if problem.status == http::StatusCode::FORBIDDEN => Ok(None),
        read => read,
    }
}

async fn read_all(schema: &Arc<Schema>) -> Result<Option<Charts>, Problem> {
    // Lines show whole steps: a part of one would look like a fall. The sums have the step that goes on, too.
    let now = OffsetDateTime::now_utc();
    let step = STEP.as_secs().cast_signed();
    let until = now - Duration::from_secs(now.unix_timestamp().rem_euclid(step).unsigned_abs());
    let until = until.replace_nanosecond(0).unwrap_or(until);
    let query = HistoryQuery { from: until - DAY, until: until + STEP, step: STEP, scope: None };
    let mut tx = schema.database.read().await?;
    let buckets = schema.once.history(&mut tx, &query).await?;
    if buckets.is_empty() {
        return Ok(None);
    }
    let hour = now - time::Duration::HOUR;
    let scopes = schema.once.history_by_scope(&mut tx, hour, now, SCOPES_MAX).await?;
    let sum = |count: fn(&HistoryCounts) -> u64| {
        buckets.iter().map(|one| count(&one.counts)).sum::<u64>()
    };
    let (started, replayed, value) = (sum(|c| c.started), sum(|c| c.replayed), sum(|c| c.value));
    Ok(Some(Charts {
        outcomes: outcomes(&buckets, query.from, until).to_string(),
        duplicates: grouped(sum(|c| c.duplicates)),
        replay_rate: percent(replayed, started + replayed),
        value: (value > 0).then(|| grouped(value)),
        scopes: scopes.iter().map(scope_calls).collect(),
    }))
}

/// `12.5 %`.
fn percent(part: u64, whole: u64) -> String {
    let tenths = part * 1000 / whole.max(1);
    format!("{}.{} %", tenths / 10, tenths % 10)
}

fn scope_calls(found: &HistoryScope) -> ScopeCalls {
    let counts = &found.counts;
    let shown = [
        counts.started,
        counts.replayed,
        counts.in_progress,
        counts.mismatch,
        counts.held,
        counts.failed,
    ];
    let scope = if found.scope.is_empty() { "(other scopes)" } else { &found.scope };
    ScopeCalls {
        scope: scope.to_owned(),
        class: found.class.clone(),
        counts: shown.map(grouped).to_vec(),
    }
}

/// Name, colour (a property of the style sheet) and count of each line.
type Line = (&'static str, &'static str, fn(&HistoryCounts) -> u64);
const LINES: [Line; 5] = [
    ("started", "--busy", |c| c.started),
    ("replayed", "--good", |c| c.replayed),
    ("in progress", "--calm", |c| c.in_progress),
    ("mismatch", "--warn", |c| c.mismatch),
    ("held or failed", "--bad", |c| c.held + c.failed),
];

/// All steps of the time, those without a record as zero.
fn outcomes(buckets: &[HistoryBucket], from: OffsetDateTime, until: OffsetDateTime) -> Value {
    let step = STEP.as_secs().cast_signed();
    let first = from.unix_timestamp();
    let times: Vec<i64> =
        (0..).map(|n| first + n * step).take_while(|at| *at < until.unix_timestamp()).collect();
    let place =
        |bucket: &HistoryBucket| usize::try_from((bucket.at.unix_timestamp() - first) / step).ok();
    let series = LINES.map(|(name, color, count)| {
        let mut values = vec![0; times.len()];
        for bucket in buckets {
            if let Some(value) = place(bucket).and_then(|place| values.get_mut(place)) {
                *value += count(&bucket.counts);
            }
        }
        json!({ "name": name, "color": color, "values": values })
    });
    json!({ "times": times, "series": series })
}
