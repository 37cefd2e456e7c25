//! The audit trail of a key, if it is on and the page's role may read it.

use http::StatusCode;
use pgonce::AuditLine;

use crate::format::Moment;
use crate::page::{Named, Page};
use crate::problem::Problem;

const LINES_MAX: u32 = 100;

pub(crate) struct Line {
    pub(crate) at: Moment,
    pub(crate) action: String,
    pub(crate) attempt: u32,
    /// Whom the application named, else the role.
    pub(crate) who: String,
}

/// The last lines, oldest first.
pub(crate) async fn read(page: &Page, named: &Named) -> Result<Vec<Line>, Problem> {
    let mut tx = page.schema.database.read().await?;
    let lines = page.schema.once.audit(&mut tx, &named.scope, &named.key, LINES_MAX).await;
    match lines.map_err(Problem::from) {
        Err(problem) if problem.status == StatusCode::FORBIDDEN => Ok(Vec::new()),
        lines => Ok(lines?.into_iter().map(line).collect()),
    }
}

fn line(line: AuditLine) -> Line {
    Line {
        at: Moment(line.at),
        action: line.action,
        attempt: line.attempt,
        who: line.actor.filter(|actor| !actor.is_empty()).unwrap_or(line.role),
    }
}
