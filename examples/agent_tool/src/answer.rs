//! What the model sees: what happened, and what to do next, in words and as fields.

use pgonce::{Done, RunError};
use rmcp::model::{CallToolResult, ContentBlock};
use serde_json::{Value, json};

/// A tool's result from what `run` or `run_leased` returned. `what` names the effect: "invoice".
pub(crate) fn answer<T, E>(what: &str, ended: Result<Done<T>, RunError<E>>) -> CallToolResult
where
    T: Into<Value>,
    E: std::fmt::Debug,
{
    match ended {
        Ok(done) if done.is_replay() => {
            let text = "An earlier call with the same arguments has done this. Nothing was done now; this is its result.";
            told(false, "replayed", text, json!({ what: done.into_inner().into() }))
        }
        Ok(done) => told(false, "done", "Done.", json!({ what: done.into_inner().into() })),
        Err(RunError::Failed { response, .. }) => {
            let why = String::from_utf8_lossy(response.body()).into_owned();
            told(
                true,
                "failed",
                "This has failed for good. Do not call again; tell the user why.",
                json!({ "why": why }),
            )
        }
        Err(RunError::InProgress(wait)) => {
            let seconds = wait.retry_after().as_secs().max(1);
            let text = "An earlier call is still at work. Call again with the same arguments, after the pause.";
            told(true, "in_progress", text, json!({ "pause_seconds": seconds }))
        }
        Err(RunError::Mismatch(_)) => {
            let text = "This order has been handled with other arguments. Do not change the order's number to get \
                        around this. Ask the user.";
            told(true, "mismatch", text, json!({}))
        }
        Err(RunError::Held(_)) => {
            let text = "It is not known whether an earlier call took effect. A person must look. Do not call again, and do \
                        not try in another way.";
            told(true, "held", text, json!({}))
        }
        Err(RunError::Omitted(_)) => told(
            false,
            "replayed",
            "An earlier call has done this. Its result is not stored.",
            json!({}),
        ),
        Err(error) => {
            eprintln!("{what}: {error:?}"); // standard output belongs to the protocol
            if error.is_retryable() {
                let text = "It is not known whether this took effect. Call again with the same arguments: it takes \
                            effect once.";
                told(true, "retry", text, json!({}))
            } else {
                told(true, "error", "This is not possible. Tell the user.", json!({}))
            }
        }
    }
}

fn told(is_error: bool, outcome: &str, text: &str, more: Value) -> CallToolResult {
    let mut fields = more;
    fields["outcome"] = outcome.into();
    let mut result = if is_error {
        CallToolResult::structured_error(fields.clone())
    } else {
        CallToolResult::structured(fields.clone())
    };
    // Some clients show the model only the text.
    result.content = vec![ContentBlock::text(format!("{text}\n{fields}"))];
    result
}
