//! Shows a stored response, or a step's output. Changes nothing, but each view is an audit line.

use askama::Template;
use axum::response::Response;
use bytes::Bytes;
use http::StatusCode;

use crate::access::Action;
use crate::actions::{asking, check_token, permitted};
use crate::audit;
use crate::format::content;
use crate::page::{Frame, Named, Page, failed, html};
use crate::params::Params;
use crate::problem::Problem;

#[derive(Template)]
#[template(path = "reveal.html")]
struct RevealPage {
    frame: Frame,
    scope: String,
    key: String,
    back: String,
    /// Empty: the response.
    step: String,
    /// Headings and texts; `None`: the visitor is asked first.
    parts: Option<Vec<(&'static str, String)>>,
}

pub(crate) async fn ask(page: Page) -> Response {
    let asked = match asking(&page, "Stored values", Action::Reveal).await {
        Ok(asked) => asked,
        Err(response) => return response,
    };
    let step = page.params.get("step").to_owned();
    html(StatusCode::OK, &RevealPage::new(asked.frame, &asked.named, step, None))
}

pub(crate) async fn act(page: Page, body: Bytes) -> Response {
    let form = Params::parse(&body);
    let outcome = read(&page, &form).await;
    let said = outcome.as_ref().map(|_| "shown");
    audit::log(&page, Action::Reveal, form.get("scope"), form.get("key"), said);
    let frame = page.frame("Stored values", "keys").await;
    match outcome {
        Ok((named, parts)) => {
            let step = form.get("step").to_owned();
            html(StatusCode::OK, &RevealPage::new(frame, &named, step, Some(parts)))
        }
        Err(problem) => failed(frame, problem),
    }
}

type Parts = Vec<(&'static str, String)>;

async fn read(page: &Page, form: &Params) -> Result<(Named, Parts), Problem> {
    check_token(page, form)?;
    permitted(page, Action::Reveal).await?;
    let named = Named::of(form)?;
    let (once, Named { scope, key }) = (&page.schema.once, &named);
    let mut tx = page.schema.database.act(&page.asked.visitor.name).await?;
    let parts = match form.some("step") {
        Some(step) => {
            let output = once.step_output(&mut tx, scope, key, step).await?;
            let output = output.ok_or_else(|| Problem::not_found("There is no such step."))?;
            vec![("Output", content(&output))]
        }
        None => {
            let found = once.inspect(&mut tx, scope, key).await?;
            let response =
                found.ok_or_else(|| Problem::not_found("No such key in this scope."))?.response;
            vec![("Headers", content(response.headers())), ("Body", content(response.body()))]
        }
    };
    // In the audit trail, if it is on; the log has the line in any case.
    once.audit_note(&mut tx, "viewed", scope, key).await?;
    pgonce::commit(tx).await?;
    Ok((named, parts.into_iter().filter(|(_, text)| !text.is_empty()).collect()))
}

impl RevealPage {
    fn new(frame: Frame, named: &Named, step: String, parts: Option<Parts>) -> Self {
        Self {
            frame,
            scope: named.scope.as_str().to_owned(),
            key: named.key.as_str().to_owned(),
            back: named.link("key"),
            step,
            parts,
        }
    }
}
