//! Decides what becomes of a key that waits for an operator, as `pgonce resolve` does.

use askama::Template;
use axum::response::Response;
use bytes::Bytes;
use http::StatusCode;
use pgonce::Response as Stored;

use crate::access::Action;
use crate::actions::{Confirmed, asking, settle};
use crate::page::{Frame, Page, html};
use crate::params::Params;
use crate::problem::Problem;

#[derive(Template)]
#[template(path = "resolve.html")]
struct ResolvePage {
    frame: Frame,
    scope: String,
    key: String,
    back: String,
    seen: String,
    attempt: u32,
    steps: Vec<String>,
    last_error: Option<String>,
}

pub(crate) async fn ask(page: Page) -> Response {
    let asked = match asking(&page, "Resolve", Action::Resolve).await {
        Ok(asked) => asked,
        Err(response) => return response,
    };
    let details = asked.known.details;
    let page = ResolvePage {
        back: asked.named.link("key"),
        scope: asked.named.scope.as_str().to_owned(),
        key: asked.named.key.as_str().to_owned(),
        frame: asked.frame,
        attempt: details.record.attempt,
        seen: details.record.seen,
        steps: asked.known.steps.into_iter().map(|step| step.name).collect(),
        last_error: details.last_error,
    };
    html(StatusCode::OK, &page)
}

pub(crate) async fn act(page: Page, body: Bytes) -> Response {
    let form = Params::parse(&body);
    let outcome = resolve(&page, &form).await;
    settle(&page, Action::Resolve, &form, outcome).await
}

async fn resolve(page: &Page, form: &Params) -> Result<&'static str, Problem> {
    let mut confirmed = Confirmed::check(page, Action::Resolve, form).await?;
    let decision = form.get("decision");
    if !["complete", "fail", "release"].contains(&decision) {
        return Err(Problem::invalid("Nothing was done: choose what became of the work."));
    }
    let response = response(form.get("code"), form.get("body"))?;
    // The operator's response is stored, whatever its size.
    let once = page.schema.once.clone().response_bytes_max(u32::MAX);
    let Confirmed { named, record, tx } = &mut confirmed;
    let claim = once.take_over_claim(tx, &named.scope, &named.key, record).await?;
    let done = match decision {
        "complete" => claim.complete(tx, response).await.map(|()| "completed")?,
        "fail" => claim.fail(tx, response).await.map(|()| "failed")?,
        _ => claim.release(tx).await.map(|()| "resolved")?,
    };
    confirmed.commit(done).await
}

fn response(code: &str, body: &str) -> Result<Stored, Problem> {
    // Browsers send a text area's lines with CR LF, whatever was typed.
    let stored = Stored::bytes(body.replace("\r\n", "\n"));
    match code.trim() {
        "" => Ok(stored),
        code => {
            let code = code.parse().map_err(|_| {
                Problem::invalid(
                    "Nothing was done: the response's code takes a whole number, such as 200.",
                )
            })?;
            Ok(stored.with_code(code))
        }
    }
}
