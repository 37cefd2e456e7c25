//! Takes a claim from a holder that is gone, as `pgonce release` does.

use askama::Template;
use axum::response::Response;
use bytes::Bytes;
use http::StatusCode;
use pgonce::ClaimState;

use crate::access::Action;
use crate::actions::{Confirmed, asking, settle};
use crate::format::Moment;
use crate::page::{Frame, Page, html};
use crate::params::Params;
use crate::problem::Problem;

#[derive(Template)]
#[template(path = "release.html")]
struct ReleasePage {
    frame: Frame,
    scope: String,
    key: String,
    back: String,
    seen: String,
    attempt: u32,
    is_live: bool,
    lease_end: Moment,
}

pub(crate) async fn ask(page: Page) -> Response {
    let asked = match asking(&page, "Release", Action::Release).await {
        Ok(asked) => asked,
        Err(response) => return response,
    };
    let record = asked.known.details.record;
    let page = ReleasePage {
        back: asked.named.link("key"),
        scope: asked.named.scope.as_str().to_owned(),
        key: asked.named.key.as_str().to_owned(),
        frame: asked.frame,
        attempt: record.attempt,
        is_live: record.claim == Some(ClaimState::Live),
        lease_end: Moment(record.lease_expires_at),
        seen: record.seen,
    };
    html(StatusCode::OK, &page)
}

pub(crate) async fn act(page: Page, body: Bytes) -> Response {
    let form = Params::parse(&body);
    let outcome = release(&page, &form).await;
    settle(&page, Action::Release, &form, outcome).await
}

async fn release(page: &Page, form: &Params) -> Result<&'static str, Problem> {
    let mut confirmed = Confirmed::check(page, Action::Release, form).await?;
    let Confirmed { named, record, tx } = &mut confirmed;
    page.schema.once.revoke_claim(tx, &named.scope, &named.key, record).await?;
    confirmed.commit("released").await
}
