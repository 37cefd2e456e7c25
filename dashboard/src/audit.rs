//! Who did what: one log line for each action, and a name for the database's audit trail.

use pgonce::{Key, Scope};

use crate::access::Action;
use crate::app::Schema;
use crate::page::Page;
use crate::problem::Problem;

/// Logs an action and how it ended. The key stands there as a hash, never as text.
pub(crate) fn log(
    page: &Page,
    action: Action,
    scope: &str,
    key: &str,
    outcome: Result<&str, &Problem>,
) {
    let Schema { once, name, .. } = &*page.schema;
    let key = match (Scope::new(scope), Key::new(key)) {
        (Ok(scope), Ok(key)) => once.log_hash(&scope, &key),
        _ => "invalid".to_owned(),
    };
    let outcome = outcome.unwrap_or_else(|problem| problem.word());
    tracing::info!(
        target: "pgonce::audit",
        actor = page.asked.visitor.name,
        action = action.as_str(),
        outcome,
        schema = name,
        key,
        "an operator's action"
    );
}
