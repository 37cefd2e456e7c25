//! The pages, one file each.

pub(crate) mod health;
pub(crate) mod inbox;
pub(crate) mod key;
pub(crate) mod keys;
pub(crate) mod overview;
pub(crate) mod scopes;
pub(crate) mod waiting;

use std::sync::Arc;

use axum::extract::{OriginalUri, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::LOCATION;

use crate::app::App;

/// Leads to the first schema's overview. Relative to the address as the browser has it, which may lack the slash.
pub(crate) async fn root(State(app): State<Arc<App>>, OriginalUri(uri): OriginalUri) -> Response {
    let Some(schema) = app.schemas.first() else { return not_found().await };
    let last = uri.path().rsplit('/').next().unwrap_or_default();
    let folder = if last.is_empty() { String::new() } else { format!("{last}/") };
    let to = format!("{folder}{}/overview", schema.name);
    (StatusCode::SEE_OTHER, [(LOCATION, to)]).into_response()
}

pub(crate) async fn not_found() -> Response {
    (StatusCode::NOT_FOUND, "there is no such page").into_response()
}
