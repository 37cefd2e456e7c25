//! Unfinished leased keys: held ones, abandoned ones and, if asked for, those at work. Messages are on the inbox's pages.

use askama::Template;
use axum::response::Response;
use http::StatusCode;
use pgonce::{HeldBecause, Scope, Unfinished, UnfinishedFilter, UnfinishedState};

use crate::format::{Moment, State};
use crate::page::{Frame, Page, failed, html};
use crate::pages::keys::{Choice, choices};
use crate::params::link;
use crate::problem::Problem;

const SHOWN_MAX: u32 = 200;

#[derive(Template)]
#[template(path = "waiting.html")]
struct WaitingPage {
    frame: Frame,
    scope: String,
    inbox_link: String,
    states: Vec<Choice>,
    rows: Vec<Row>,
    is_cut: bool,
}

struct Row {
    state: State,
    because: &'static str,
    scope: String,
    key: String,
    link: String,
    attempts: String,
    steps: u32,
    since: Moment,
    tries: u32,
    next_try: Option<Moment>,
}

const STATES: [(&str, &str); 4] = [
    ("", "all without a holder"),
    ("held", "held"),
    ("abandoned", "abandoned"),
    ("live", "at work"),
];

pub(crate) async fn page(page: Page) -> Response {
    let (scope, state) = (page.params.get("scope"), page.params.get("state"));
    let fields = [("scope", scope), ("state", state)];
    let frame = page.frame("Abandoned and held", "waiting").await.updating("waiting", &fields);
    match find(&page, scope, state).await {
        Ok(found) => {
            let is_cut = found.len() >= SHOWN_MAX as usize;
            let rows = found
                .into_iter()
                .filter(|found| state == "live" || found.state != UnfinishedState::Live);
            let page = WaitingPage {
                frame,
                scope: scope.to_owned(),
                inbox_link: link("inbox", &[("consumer", scope)]),
                states: choices(&STATES, state),
                rows: rows.map(|found| row(&found)).collect(),
                is_cut,
            };
            html(StatusCode::OK, &page)
        }
        Err(problem) => failed(frame, problem),
    }
}

async fn find(page: &Page, scope: &str, state: &str) -> Result<Vec<Unfinished>, Problem> {
    let scope = Some(scope).filter(|scope| !scope.is_empty()).map(Scope::new).transpose()?;
    let once = &page.schema.once;
    let mut tx = page.schema.database.read().await?;
    let find = async |tx: &mut _, state| {
        let filter =
            UnfinishedFilter { scope: scope.clone(), state: Some(state), messages: Some(false) };
        once.unfinished(tx, &filter, SHOWN_MAX).await
    };
    Ok(match state {
        "held" => find(&mut tx, UnfinishedState::Held).await?,
        "abandoned" => find(&mut tx, UnfinishedState::Abandoned).await?,
        "live" => find(&mut tx, UnfinishedState::Live).await?,
        // Those that need a person come first.
        _ => {
            let mut found = find(&mut tx, UnfinishedState::Held).await?;
            found.extend(find(&mut tx, UnfinishedState::Abandoned).await?);
            found
        }
    })
}

fn row(found: &Unfinished) -> Row {
    let (listed, record) = (&found.listed, &found.listed.record);
    let is_abandoned = found.state == UnfinishedState::Abandoned;
    Row {
        state: State::of_unfinished(found.state, false),
        because: match found.held_because.filter(|_| found.state == UnfinishedState::Held) {
            Some(HeldBecause::Lapsed) => "lapsed",
            Some(HeldBecause::Attempts) => "attempts used up",
            None => "",
        },
        link: link("key", &[("scope", &listed.scope), ("key", &listed.key)]),
        attempts: attempts(found),
        steps: found.steps,
        since: Moment(record.lease_expires_at),
        tries: found.tries,
        next_try: found.try_at.filter(|_| is_abandoned).map(Moment),
        scope: listed.scope.clone(),
        key: listed.key.clone(),
    }
}

/// `3`, or `3 of 10`.
pub(crate) fn attempts(found: &Unfinished) -> String {
    match found.max_attempts {
        Some(max) => format!("{} of {max}", found.used),
        None => found.used.to_string(),
    }
}
