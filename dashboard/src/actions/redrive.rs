//! Lets a dead message be handled again, as `pgonce inbox redrive` does.

use askama::Template;
use axum::response::Response;
use bytes::Bytes;
use http::StatusCode;
use pgonce::Inbox;

use crate::access::Action;
use crate::actions::{Confirmed, asking, settle};
use crate::page::{Frame, Page, html};
use crate::params::Params;
use crate::problem::Problem;

#[derive(Template)]
#[template(path = "redrive.html")]
struct RedrivePage {
    frame: Frame,
    scope: String,
    key: String,
    back: String,
    seen: String,
    attempt: u32,
    last_error: Option<String>,
}

pub(crate) async fn ask(page: Page) -> Response {
    let asked = match asking(&page, "Redrive", Action::Redrive).await {
        Ok(asked) => asked,
        Err(response) => return response,
    };
    let details = asked.known.details;
    let page = RedrivePage {
        back: asked.named.link("key"),
        scope: asked.named.scope.as_str().to_owned(),
        key: asked.named.key.as_str().to_owned(),
        frame: asked.frame,
        attempt: details.record.attempt,
        seen: details.record.seen,
        last_error: details.last_error,
    };
    html(StatusCode::OK, &page)
}

pub(crate) async fn act(page: Page, body: Bytes) -> Response {
    let form = Params::parse(&body);
    let outcome = redrive(&page, &form).await;
    settle(&page, Action::Redrive, &form, outcome).await
}

async fn redrive(page: &Page, form: &Params) -> Result<&'static str, Problem> {
    let mut confirmed = Confirmed::check(page, Action::Redrive, form).await?;
    let Confirmed { named, record, tx } = &mut confirmed;
    let inbox = Inbox::new(&page.schema.once, named.scope.as_str())?;
    inbox.redrive(tx, named.key.as_str(), record).await?;
    confirmed.commit("redriven").await
}
