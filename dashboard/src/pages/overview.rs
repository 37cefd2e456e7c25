//! What the tables know at once.

use std::sync::Arc;

use askama::Template;
use axum::response::Response;
use http::StatusCode;
use pgonce::Overview;

use crate::app::COUNT_MAX;
use crate::format::{Count, Moment, grouped, lasting, size};
use crate::history::Charts;
use crate::page::{Frame, Page, failed, html};
use crate::params::link;
use crate::problem::Problem;

/// A reaper passes once a minute. After this long it is missing or behind.
pub(crate) const OVERDUE_LATE_SECONDS: u64 = 600;
/// A recovery looks twice a second.
pub(crate) const ABANDONED_LATE_SECONDS: u64 = 600;

/// Leased work seldom takes this long.
const LIVE_LONG_SECONDS: u64 = 3600;

#[derive(Template)]
#[template(path = "overview.html")]
struct OverviewPage {
    frame: Frame,
    attention: Vec<Attention>,
    tiles: Vec<Tile>,
    ages: Vec<Age>,
    storage: Vec<(&'static str, String)>,
    vacuumed: Option<Moment>,
    charts: Arc<Option<Charts>>,
}

/// Something that a person should look at.
struct Attention {
    is_bad: bool,
    says: String,
    link: String,
    link_says: &'static str,
}

struct Tile {
    name: &'static str,
    count: String,
    explains: &'static str,
    link: String,
    class: &'static str,
}

/// How many live keys are this old, and how long their bar is: at most 100.
struct Age {
    name: &'static str,
    count: Count,
    bar: u64,
}

pub(crate) async fn page(page: Page) -> Response {
    let frame = page.frame("Overview", "overview").await.updating("overview", &[]);
    let seen = page.schema.overview().await;
    let Some(overview) = seen.value else {
        return failed(frame, seen.problem.unwrap_or_else(Problem::away));
    };
    let charts = page.schema.charts().await;
    let page = OverviewPage {
        frame: frame.with(seen.problem.or(charts.problem)),
        attention: attention(&overview),
        tiles: tiles(&overview),
        ages: ages(&overview),
        storage: storage(&overview),
        vacuumed: overview.vacuumed_at.map(Moment),
        charts: charts.value.unwrap_or_default(),
    };
    html(StatusCode::OK, &page)
}

fn attention(seen: &Overview) -> Vec<Attention> {
    let mut found = Vec::new();
    let part = |number| Count::part(number, seen.unfinished_capped);
    let held = part(seen.held);
    if !held.is_zero() {
        found.push(Attention {
            is_bad: true,
            says: format!(
                "{held} {} held: callers are refused, and told so, until you decide.",
                held.of("key is", "keys are")
            ),
            link: link("waiting", &[("state", "held")]),
            link_says: "Look at held keys",
        });
    }
    let dead = part(seen.dead_messages);
    if !dead.is_zero() {
        found.push(Attention {
            is_bad: true,
            says: format!(
                "{dead} {} dead: all attempts failed.",
                dead.of("message is", "messages are")
            ),
            link: "inbox".to_owned(),
            link_says: "Look at the inbox",
        });
    }
    let waiting = part(seen.waiting_messages);
    if !waiting.is_zero() {
        found.push(Attention {
            is_bad: false,
            says: format!(
                "{waiting} {} and {} for the next delivery.",
                waiting.of("message has failed", "messages have failed"),
                waiting.of("waits", "wait")
            ),
            link: "inbox".to_owned(),
            link_says: "Look at the inbox",
        });
    }
    if let Some(late) = seen.oldest_overdue.filter(|late| late.as_secs() >= OVERDUE_LATE_SECONDS) {
        found.push(Attention {
            is_bad: false,
            says: format!(
                "No reaper keeps up: the oldest forgotten key has been overdue for {}.",
                lasting(late)
            ),
            link: "health".to_owned(),
            link_says: "Look at the health page",
        });
    }
    if let Some(age) = seen.oldest_live.filter(|age| age.as_secs() >= LIVE_LONG_SECONDS) {
        found.push(Attention {
            is_bad: false,
            says: format!(
                "The oldest key at work was begun {} ago: is its holder alive? Its callers are told that it is in progress.",
                lasting(age)
            ),
            link: link("waiting", &[("state", "live")]),
            link_says: "Look at keys at work",
        });
    }
    let abandoned = part(seen.abandoned);
    if let Some(late) =
        seen.longest_abandoned.filter(|late| late.as_secs() >= ABANDONED_LATE_SECONDS)
    {
        found.push(Attention {
            is_bad: false,
            says: format!(
                "{abandoned} abandoned {}, the first for {}: no client retries, and no recovery continues the work.",
                abandoned.of("key waits", "keys wait"),
                lasting(late)
            ),
            link: link("waiting", &[("state", "abandoned")]),
            link_says: "Look at abandoned keys",
        });
    }
    found
}

fn tiles(seen: &Overview) -> Vec<Tile> {
    let part = |number| Count::part(number, seen.unfinished_capped);
    let tile = |name, count: Count, explains, link, alarm| Tile {
        name,
        count: count.to_string(),
        explains,
        link,
        class: if count.is_zero() { "calm" } else { alarm },
    };
    let waiting = |state| link("waiting", &[("state", state)]);
    let overdue = Count { is_capped: seen.overdue >= u64::from(COUNT_MAX), number: seen.overdue };
    vec![
        tile("At work", part(seen.live), "leased; the lease runs", waiting("live"), "busy"),
        tile("Abandoned", part(seen.abandoned), "may be continued", waiting("abandoned"), "warn"),
        tile("Held", part(seen.held), "wait for you", waiting("held"), "bad"),
        tile(
            "Failed messages",
            part(seen.waiting_messages),
            "wait for delivery",
            "inbox".to_owned(),
            "warn",
        ),
        tile(
            "Dead messages",
            part(seen.dead_messages),
            "no attempts left",
            "inbox".to_owned(),
            "bad",
        ),
        tile("Overdue", overdue, "not yet reaped", "health".to_owned(), "calm"),
    ]
}

fn ages(seen: &Overview) -> Vec<Age> {
    let most = seen.live_by_age.iter().copied().max().unwrap_or(0).max(1);
    let names = ["under 1 min", "1 to 10 min", "10 min to 1 h", "1 h to 1 d", "over 1 d"];
    let age = |(name, number): (&'static str, u64)| Age {
        name,
        count: Count::part(number, seen.unfinished_capped),
        // A bar that stands for something can be seen.
        bar: (number * 100 / most).max(u64::from(number > 0)),
    };
    names.into_iter().zip(seen.live_by_age).map(age).collect()
}

fn storage(seen: &Overview) -> Vec<(&'static str, String)> {
    let estimate =
        seen.keys_estimate.map_or("not known before the first vacuum".to_owned(), |keys| {
            format!("about {}", grouped(keys))
        });
    vec![
        ("Keys", estimate),
        (
            "All of pgonce's tables",
            size(seen.table_bytes + seen.index_bytes + seen.steps_bytes + seen.unfinished_bytes),
        ),
        ("Table of keys", size(seen.table_bytes)),
        ("Its indexes", size(seen.index_bytes)),
        ("Steps", size(seen.steps_bytes)),
        ("Unfinished keys", size(seen.unfinished_bytes)),
        (
            "Dead rows",
            seen.dead_rows.map_or("-".to_owned(), |rows| format!("about {}", grouped(rows))),
        ),
    ]
}
