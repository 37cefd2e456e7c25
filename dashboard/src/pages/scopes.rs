//! All scopes, page by page.

use askama::Template;
use axum::response::Response;
use http::StatusCode;
use pgonce::Scope;

use crate::app::{SCOPE_COUNT_MAX, SCOPES_PER_PAGE};
use crate::format::Count;
use crate::page::{Frame, Page, failed, html};
use crate::params::link;
use crate::problem::Problem;

#[derive(Template)]
#[template(path = "scopes.html")]
struct ScopesPage {
    frame: Frame,
    prefix: String,
    is_first: bool,
    rows: Vec<Row>,
    next: Option<String>,
}

struct Row {
    scope: String,
    keys: Count,
    unfinished: Count,
    keys_link: String,
    unfinished_link: String,
}

pub(crate) async fn page(page: Page) -> Response {
    let (prefix, after) = (page.params.get("prefix"), page.params.get("after"));
    let fields = [("prefix", prefix), ("after", after)];
    let frame = page.frame("Scopes", "scopes").await.updating("scopes", &fields);
    for text in [prefix, after].into_iter().filter(|text| !text.is_empty()) {
        if let Err(error) = Scope::new(text) {
            return failed(frame, error.into());
        }
    }
    let seen = page.schema.scopes(prefix, after).await;
    let Some(scopes) = seen.value else {
        return failed(frame, seen.problem.unwrap_or_else(Problem::away));
    };
    let shown = scopes.len().min(SCOPES_PER_PAGE as usize);
    let rows: Vec<_> = scopes[..shown]
        .iter()
        .map(|counts| Row {
            keys_link: link("keys", &[("scope", &counts.scope)]),
            unfinished_link: link("waiting", &[("scope", &counts.scope)]),
            keys: Count::up_to(counts.keys, SCOPE_COUNT_MAX),
            unfinished: Count::up_to(counts.unfinished, SCOPE_COUNT_MAX),
            scope: counts.scope.clone(),
        })
        .collect();
    let last = rows.last().filter(|_| scopes.len() > shown);
    let next = last.map(|last| link("scopes", &[("prefix", prefix), ("after", &last.scope)]));
    let (prefix, is_first) = (prefix.to_owned(), after.is_empty());
    html(
        StatusCode::OK,
        &ScopesPage { frame: frame.with(seen.problem), prefix, is_first, rows, next },
    )
}
