//! Search by scope and the beginning of a key.

use askama::Template;
use axum::response::Response;
use http::StatusCode;
use pgonce::{Found, Key, Scope, Search, Status};

use crate::format::{Moment, State};
use crate::page::{Frame, Page, failed, html, see_other};
use crate::params::link;
use crate::problem::Problem;

const PER_PAGE: u32 = 100;

#[derive(Template)]
#[template(path = "keys.html")]
struct KeysPage {
    frame: Frame,
    scope: String,
    prefix: String,
    statuses: Vec<Choice>,
    /// `None`: no scope was given yet.
    rows: Option<Vec<Row>>,
    next: Option<String>,
}

/// An option of a select.
pub(crate) struct Choice {
    pub(crate) value: &'static str,
    pub(crate) says: &'static str,
    pub(crate) is_chosen: bool,
}

struct Row {
    key: String,
    link: String,
    state: State,
    attempt: u32,
    code: String,
    created: Moment,
    expires: Moment,
}

const STATUSES: [(&str, &str); 4] =
    [("", "any"), ("in_progress", "in progress"), ("completed", "completed"), ("failed", "failed")];

pub(crate) async fn page(page: Page) -> Response {
    let frame = page.frame("Search", "keys").await;
    let get = |name| page.params.get(name);
    let searched = match page.params.some("scope") {
        None => Ok(None),
        Some(scope) => search(&page, scope).await.map(Some),
    };
    let found = match searched {
        Ok(found) => found,
        Err(problem) if problem.status == StatusCode::BAD_REQUEST => {
            return show(&page, frame.with(Some(problem)), StatusCode::BAD_REQUEST, None);
        }
        Err(problem) => return failed(frame, problem),
    };
    // A search for exactly one key leads to it.
    if let Some(Found { keys, .. }) = &found
        && let [only] = keys.as_slice()
        && only.key == get("prefix")
    {
        return see_other(&link("key", &[("scope", &only.scope), ("key", &only.key)]));
    }
    show(&page, frame, StatusCode::OK, found)
}

async fn search(page: &Page, scope: &str) -> Result<Found, Problem> {
    let search = Search {
        scope: Scope::new(scope)?,
        prefix: checked(page.params.some("prefix"))?,
        after: checked(page.params.some("after"))?,
        status: status(page.params.get("status")),
    };
    let mut tx = page.schema.database.read().await?;
    Ok(page.schema.once.search(&mut tx, &search, PER_PAGE).await?)
}

/// Text that can be part of a key: the database refuses some others with words that nobody understands.
fn checked(text: Option<&str>) -> Result<Option<String>, Problem> {
    Ok(text.map(Key::new).transpose()?.map(|key| key.as_str().to_owned()))
}

fn status(word: &str) -> Option<Status> {
    [Status::InProgress, Status::Completed, Status::Failed]
        .into_iter()
        .find(|status| status.as_str() == word)
}

fn show(page: &Page, frame: Frame, status: StatusCode, found: Option<Found>) -> Response {
    let get = |name| page.params.get(name);
    let fields = |after| {
        [
            ("scope", get("scope")),
            ("prefix", get("prefix")),
            ("status", get("status")),
            ("after", after),
        ]
    };
    let next = found.as_ref().and_then(|found| found.next.as_deref());
    let row = |listed: pgonce::Listed| Row {
        link: link("key", &[("scope", &listed.scope), ("key", &listed.key)]),
        state: State::of_status(&listed.record),
        attempt: listed.record.attempt,
        code: listed.record.response_code.map_or("-".to_owned(), |code| code.to_string()),
        created: Moment(listed.record.created_at),
        expires: Moment(listed.record.expires_at),
        key: listed.key,
    };
    let page = KeysPage {
        next: next.map(|next| link("keys", &fields(next))),
        frame,
        scope: get("scope").to_owned(),
        prefix: get("prefix").to_owned(),
        statuses: choices(&STATUSES, get("status")),
        rows: found.map(|found| found.keys.into_iter().map(row).collect()),
    };
    html(status, &page)
}

pub(crate) fn choices(all: &[(&'static str, &'static str)], chosen: &str) -> Vec<Choice> {
    let choice = |&(value, says): &(&'static str, &'static str)| Choice {
        value,
        says,
        is_chosen: value == chosen,
    };
    all.iter().map(choice).collect()
}
