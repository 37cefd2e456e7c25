//! Consumers, and their messages that are not done.

use askama::Template;
use axum::response::Response;
use http::StatusCode;
use pgonce::{Scope, Unfinished, UnfinishedFilter, UnfinishedState};

use crate::format::{Count, Moment, State, cut, lasting};
use crate::page::{Frame, Page, failed, html};
use crate::pages::waiting::attempts;
use crate::params::link;
use crate::problem::Problem;

const SHOWN_MAX: u32 = 200;
const ERROR_BYTES_SHOWN: usize = 160;

#[derive(Template)]
#[template(path = "inbox.html")]
struct InboxPage {
    frame: Frame,
    consumers: Vec<ConsumerRow>,
}

struct ConsumerRow {
    name: String,
    link: String,
    dead: Count,
    waiting: Count,
    handled: Count,
    since: String,
}

#[derive(Template)]
#[template(path = "consumer.html")]
struct ConsumerPage {
    frame: Frame,
    consumer: String,
    failed_link: String,
    rows: Vec<MessageRow>,
    is_cut: bool,
}

struct MessageRow {
    state: State,
    id: String,
    link: String,
    attempts: String,
    since: Moment,
    last_error: String,
}

pub(crate) async fn page(page: Page) -> Response {
    match page.params.some("consumer") {
        Some(consumer) => messages(&page, consumer).await,
        None => consumers(&page).await,
    }
}

async fn consumers(page: &Page) -> Response {
    let frame = page.frame("Inbox", "inbox").await.updating("inbox", &[]);
    let seen = page.schema.consumers().await;
    let Some(consumers) = seen.value else {
        return failed(frame, seen.problem.unwrap_or_else(Problem::away));
    };
    let row = |consumer: &pgonce::Consumer| ConsumerRow {
        name: consumer.name.clone(),
        link: link("inbox", &[("consumer", &consumer.name)]),
        dead: Count::exact(consumer.dead),
        waiting: Count::exact(consumer.waiting),
        handled: Count::exact(consumer.handled),
        since: consumer
            .longest_lapsed
            .map_or("-".to_owned(), |past| format!("{} ago", lasting(past))),
    };
    let consumers = consumers.iter().map(row).collect();
    html(StatusCode::OK, &InboxPage { frame: frame.with(seen.problem), consumers })
}

async fn messages(page: &Page, consumer: &str) -> Response {
    let frame = page.frame("Inbox", "inbox").await.updating("inbox", &[("consumer", consumer)]);
    let found = match find(page, consumer).await {
        Ok(found) => found,
        Err(problem) => return failed(frame, problem),
    };
    let is_cut = found.len() >= SHOWN_MAX as usize;
    let page = ConsumerPage {
        frame,
        consumer: consumer.to_owned(),
        failed_link: link("keys", &[("scope", consumer), ("status", "failed")]),
        rows: found.into_iter().take(SHOWN_MAX as usize).map(row).collect(),
        is_cut,
    };
    html(StatusCode::OK, &page)
}

async fn find(page: &Page, consumer: &str) -> Result<Vec<Unfinished>, Problem> {
    let mut filter = UnfinishedFilter {
        scope: Some(Scope::new(consumer)?),
        state: Some(UnfinishedState::Held),
        messages: Some(true),
    };
    let mut tx = page.schema.database.read().await?;
    // Dead ones first, however many others there are.
    let mut found = page.schema.once.unfinished(&mut tx, &filter, SHOWN_MAX).await?;
    for state in [UnfinishedState::Abandoned, UnfinishedState::Live] {
        filter.state = Some(state);
        found.extend(page.schema.once.unfinished(&mut tx, &filter, SHOWN_MAX).await?);
    }
    Ok(found)
}

fn row(found: Unfinished) -> MessageRow {
    let listed = &found.listed;
    MessageRow {
        state: State::of_unfinished(found.state, true),
        id: listed.key.clone(),
        link: link("key", &[("scope", &listed.scope), ("key", &listed.key)]),
        attempts: attempts(&found),
        since: Moment(listed.record.lease_expires_at),
        last_error: cut(found.last_error.unwrap_or_default(), ERROR_BYTES_SHOWN),
    }
}
