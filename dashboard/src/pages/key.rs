//! One key: where it stands, what happened to it, what can be done.

use askama::Template;
use axum::response::Response;
use http::StatusCode;
use pgonce::{ClaimState, Details, HeldBecause, Operation, Status, StepDone, UnfinishedState};

use crate::access::Action;
use crate::format::{Moment, State, lasting, size};
use crate::page::{Frame, Named, Page, failed, html};
use crate::params::link;
use crate::problem::Problem;
use crate::trail::{self, Line};

#[derive(Template)]
#[template(path = "key.html")]
pub(crate) struct KeyPage {
    frame: Frame,
    scope: String,
    key: String,
    scope_link: String,
    state: State,
    means: String,
    facts: Vec<Fact>,
    timeline: Vec<Event>,
    trail: Vec<Line>,
    steps: Vec<StepRow>,
    progress: Option<String>,
    last_error: Option<String>,
    response: Option<String>,
    response_link: Option<String>,
    may_reveal: bool,
    derived_name: String,
    derived: Vec<(String, String)>,
    actions: Vec<Offer>,
}

struct Fact {
    name: &'static str,
    value: String,
    time: Option<Moment>,
}

/// Something that has happened, or will.
struct Event {
    at: Moment,
    says: String,
    class: &'static str,
}

struct StepRow {
    number: u32,
    name: String,
    at: Option<Moment>,
    output: String,
    link: String,
}

/// An action that the key's state allows, and the visitor may do.
struct Offer {
    says: &'static str,
    link: String,
    explains: &'static str,
}

/// What the database knows of the key.
pub(crate) struct Known {
    pub(crate) details: Details,
    pub(crate) steps: Vec<StepDone>,
}

pub(crate) async fn find(page: &Page, named: &Named) -> Result<Known, Problem> {
    let (once, Named { scope, key }) = (&page.schema.once, named);
    let mut tx = page.schema.database.read().await?;
    let details = once.details(&mut tx, scope, key).await?;
    let details = details.ok_or_else(|| {
        Problem::not_found(
            "No such key in this scope. A key that was begun in an open transaction cannot be seen yet; a reaped key is gone.",
        )
    })?;
    let steps = once.steps(&mut tx, scope, key).await?;
    Ok(Known { details, steps })
}

pub(crate) async fn page(page: Page) -> Response {
    let fields = ["scope", "key", "name"].map(|name| (name, page.params.get(name)));
    let frame = page.frame("Key", "keys").await.updating("key", &fields);
    let named = match Named::of(&page.params) {
        Ok(named) => named,
        Err(problem) => return failed(frame, problem),
    };
    match find(&page, &named).await {
        Ok(known) => {
            let shown = shown(&page, frame, &named, &known).await;
            html(StatusCode::OK, &shown)
        }
        Err(problem) => failed(frame, problem),
    }
}

async fn shown(page: &Page, frame: Frame, named: &Named, known: &Known) -> KeyPage {
    let Known { details, steps } = known;
    let may_reveal = page.may(Action::Reveal).await;
    let (trail, problem) = match trail::read(page, named).await {
        Ok(trail) => (trail, None),
        Err(problem) => (Vec::new(), Some(problem)),
    };
    let derived_name = page.params.get("name").to_owned();
    KeyPage {
        frame: frame.with(problem),
        trail,
        scope: named.scope.as_str().to_owned(),
        key: named.key.as_str().to_owned(),
        scope_link: link("keys", &[("scope", named.scope.as_str())]),
        state: State::of_details(details),
        means: means(details),
        facts: facts(details),
        timeline: timeline(details, steps),
        steps: steps.iter().map(|step| step_row(named, step)).collect(),
        progress: details.progress.as_ref().map(|said| format!("{said:#}")),
        last_error: details.last_error.clone(),
        response: response(details),
        response_link: details
            .response_body_bytes
            .or(details.response_headers_bytes)
            .map(|_| named.link("reveal")),
        may_reveal,
        derived: derived(named, steps, &derived_name),
        derived_name,
        actions: offers(page, named, known).await,
    }
}

/// The state in a sentence: what it waits for.
fn means(details: &Details) -> String {
    if details.overdue {
        return "Its retention is over: the next begin takes it for new, and the reaper deletes it.".to_owned();
    }
    let says = match (details.state, details.held_because) {
        (Some(UnfinishedState::Held), _) if details.is_message => {
            "All its attempts failed: it is not handled again until an operator redrives it."
        }
        (Some(UnfinishedState::Held), Some(HeldBecause::Lapsed)) => {
            "Its holder died or gave up, and its policy leaves the next step to an operator: callers are told that it is held."
        }
        (Some(UnfinishedState::Held), _) => {
            "Its attempts are used up: callers are told that it is held until an operator decides."
        }
        (Some(UnfinishedState::Abandoned), _) if details.is_message && details.used == 0 => {
            "An operator let it be handled again: that happens when the broker delivers it again."
        }
        (Some(UnfinishedState::Abandoned), _) if details.is_message => {
            "Its last attempt failed: it is handled again when the broker delivers it again."
        }
        (Some(UnfinishedState::Abandoned), _) => {
            "No process works on it: the next begin or a recovery continues it, and skips its recorded steps."
        }
        (Some(UnfinishedState::Live), _) => {
            "Its holder is at work; callers are told that it is in progress."
        }
        _ => match (details.record.status, details.record.claim) {
            (Status::Completed, _) => "It is done: retries get the stored response.",
            (Status::Failed, _) => {
                "It failed for good: retries get the stored response, as a failure."
            }
            (Status::InProgress, Some(ClaimState::Released)) => {
                "Its claim was given back: the next begin runs it."
            }
            (Status::InProgress, Some(ClaimState::Live)) => {
                "It was committed without a call of complete: its effect exists, and it stays in progress until its retention ends."
            }
            (Status::InProgress, _) => "Its claim lapsed: the next begin takes it over.",
            _ => {
                "Its row has a value that pgonce never writes: it is neither replayed nor run again."
            }
        },
    };
    says.to_owned()
}

fn facts(details: &Details) -> Vec<Fact> {
    let record = &details.record;
    let fact = |name, value: String| Fact { name, value, time: None };
    let at = |name, at| Fact { name, value: String::new(), time: Some(Moment(at)) };
    let limit = details.max_attempts.map_or(String::new(), |max| format!(" of {max}"));
    let uncounted = record.attempt.saturating_sub(details.used);
    let attempts = match uncounted {
        0 => format!("{}{limit}", record.attempt),
        uncounted => {
            format!("{}{limit}; {uncounted} more before, which no longer count", details.used)
        }
    };
    let mut facts = vec![fact("Attempts", attempts), at("Begun", record.created_at)];
    if details.state.is_some() {
        let says = if record.claim == Some(ClaimState::Live) { "Lease ends" } else { "Lapsed" };
        facts.push(at(says, record.lease_expires_at));
    }
    if let (Some(try_at), Some(tries)) = (details.try_at, details.tries)
        && details.state == Some(UnfinishedState::Abandoned)
        && !details.is_message
    {
        facts.push(fact("Tries by recoveries", tries.to_string()));
        facts.push(at("Next try", try_at));
    }
    if let Some(done) = record.completed_at {
        let took = (done - record.created_at).unsigned_abs();
        facts.push(at("Finished", done));
        facts.push(fact("Took", lasting(took)));
    }
    if let Some(code) = record.response_code {
        facts.push(fact("Response code", code.to_string()));
    }
    facts.push(at("Forgotten", record.expires_at));
    facts.push(fact(
        "Bound to a request",
        if record.fingerprinted { "yes" } else { "no" }.to_owned(),
    ));
    facts
}

/// In order of time; what has not happened yet comes last.
fn timeline(details: &Details, steps: &[StepDone]) -> Vec<Event> {
    let record = &details.record;
    let event = |at, says: String, class| Event { at: Moment(at), says, class };
    let mut events = vec![event(record.created_at, "begun".to_owned(), "calm")];
    for step in steps {
        if let Some(at) = step.recorded_at {
            events.push(event(at, format!("step {} recorded", step.name), "good"));
        }
    }
    match (record.status, record.claim) {
        (Status::Completed, _) => {}
        (Status::InProgress, Some(ClaimState::Live)) if details.leased => {
            let says = format!("lease of attempt {} ends unless it is extended", record.attempt);
            events.push(event(record.lease_expires_at, says, "busy"));
        }
        (Status::InProgress, Some(ClaimState::Lapsed)) => {
            events.push(event(
                record.lease_expires_at,
                format!("attempt {} lapsed", record.attempt),
                "warn",
            ));
        }
        (Status::InProgress, Some(ClaimState::Released)) => {
            events.push(event(
                record.lease_expires_at,
                format!("attempt {} released", record.attempt),
                "calm",
            ));
        }
        _ => {}
    }
    if let Some(at) = record.completed_at {
        let class = if record.status == Status::Completed { "good" } else { "bad" };
        let attempt = record.attempt;
        let says = match attempt {
            1 => record.status.as_str().to_owned(),
            _ => format!("{} in attempt {attempt}", record.status.as_str()),
        };
        events.push(event(at, says, class));
    }
    events.push(event(record.expires_at, "forgotten".to_owned(), "calm"));
    events.sort_by_key(|event| event.at.0);
    events
}

fn step_row(named: &Named, step: &StepDone) -> StepRow {
    let fields = [
        ("scope", named.scope.as_str()),
        ("key", named.key.as_str()),
        ("step", step.name.as_str()),
    ];
    StepRow {
        number: step.number,
        name: step.name.clone(),
        at: step.recorded_at.map(Moment),
        output: size(u64::from(step.output_bytes)),
        link: link("reveal", &fields),
    }
}

/// What is stored, by length; `None`: the key is not finished.
fn response(details: &Details) -> Option<String> {
    details.record.completed_at?;
    if details.record.response_omitted {
        return Some("Not stored: it was too large, or marked secret.".to_owned());
    }
    let bytes = |length: Option<u32>| size(u64::from(length.unwrap_or_default()));
    Some(match (details.response_headers_bytes, details.response_body_bytes) {
        (None, None) => "Empty.".to_owned(),
        (None, body) => format!("{} of body.", bytes(body)),
        (headers, body) => format!("{} of headers, {} of body.", bytes(headers), bytes(body)),
    })
}

/// The key that a remote got from each step, and from the name that the visitor asks for.
fn derived(named: &Named, steps: &[StepDone], name: &str) -> Vec<(String, String)> {
    let Ok(op) = Operation::new(&named.scope, &named.key) else { return Vec::new() };
    let mut names: Vec<&str> = steps.iter().map(|step| step.name.as_str()).collect();
    if !name.is_empty() && !names.contains(&name) {
        names.push(name);
    }
    names
        .into_iter()
        .map(|name| (name.to_owned(), op.derived_key(name).as_str().to_owned()))
        .collect()
}

async fn offers(page: &Page, named: &Named, known: &Known) -> Vec<Offer> {
    let details = &known.details;
    let is_live = details.record.claim == Some(ClaimState::Live);
    let redrives =
        details.state == Some(UnfinishedState::Held) || details.record.completed_at.is_some();
    let resolve = match details.state {
        _ if details.is_message => {
            "Only if you know what became of the message: mark it as done, or as failed."
        }
        Some(UnfinishedState::Held) => {
            "The usual way. Decide what became of the work: done, failed, or to be run again."
        }
        _ => "Only if it must not run again: mark it as done, or as failed.",
    };
    let release = match is_live {
        true => {
            "Take the claim from a holder that is gone for good. Then the next caller begins the key at once."
        }
        false => {
            "The same as Resolve with \u{201c}It may run again\u{201d}, without a look at the steps."
        }
    };
    let redrive =
        "The usual way. Fix the cause first; then it is handled again at its next delivery.";
    let all = [
        (Action::Redrive, "Redrive", redrive),
        (Action::Resolve, "Resolve", resolve),
        (Action::Release, "Release", release),
    ];
    let mut offers = Vec::new();
    for (action, says, explains) in all {
        let fits = match action {
            Action::Redrive => redrives,
            // For a message, Redrive does it.
            Action::Release => is_live || !details.is_message,
            _ => true,
        };
        if fits && allows(known, action) && page.may(action).await {
            offers.push(Offer { says, link: named.link(action.as_str()), explains });
        }
    }
    offers
}

/// Whether the action makes sense for the key as it was seen. The database decides again, under the key's lock.
pub(crate) fn allows(known: &Known, action: Action) -> bool {
    let Known { details, steps } = known;
    let (record, claim) = (&details.record, details.record.claim);
    let is_live = claim == Some(ClaimState::Live);
    let in_progress = record.status == Status::InProgress && !details.overdue;
    match action {
        Action::Release => in_progress && claim != Some(ClaimState::Released),
        Action::Resolve => in_progress && !(is_live && details.leased),
        Action::Redrive => {
            let waits = in_progress && !is_live && details.is_message;
            let failed =
                record.status == Status::Failed && !record.fingerprinted && steps.is_empty();
            (waits || failed) && !details.overdue
        }
        Action::Reveal => true,
    }
}
