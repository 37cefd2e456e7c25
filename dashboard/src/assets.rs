//! Style sheet, scripts and icon: in the program, so that the page needs no network but its own.

use axum::extract::Path;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};

/// Name, type and content.
const FILES: [(&str, &str, &str); 6] = [
    ("page.css", "text/css; charset=utf-8", include_str!("../static/page.css")),
    ("page.js", "text/javascript; charset=utf-8", include_str!("../static/page.js")),
    ("icon.svg", "image/svg+xml", include_str!("../static/icon.svg")),
    (
        "htmx.min.js",
        "text/javascript; charset=utf-8",
        include_str!("../static/vendored/htmx.min.js"),
    ),
    (
        "uPlot.iife.min.js",
        "text/javascript; charset=utf-8",
        include_str!("../static/vendored/uPlot.iife.min.js"),
    ),
    ("uPlot.min.css", "text/css; charset=utf-8", include_str!("../static/vendored/uPlot.min.css")),
];

/// Changes with each release, so that browsers may keep the files.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

pub(crate) async fn file(Path(name): Path<String>) -> Response {
    let Some((_, kind, content)) = FILES.iter().find(|(file, ..)| *file == name) else {
        return (StatusCode::NOT_FOUND, "there is no such file").into_response();
    };
    let headers = [(CONTENT_TYPE, *kind), (CACHE_CONTROL, "private, max-age=3600")];
    (headers, *content).into_response()
}
