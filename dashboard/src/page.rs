//! What all pages have in common: where the request points, the frame around the content, and how a page is rendered.

use std::sync::Arc;

use askama::Template;
use axum::extract::{FromRequestParts, Path};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::{CONTENT_TYPE, LOCATION};
use http::request::Parts;
use pgonce::{Key, Scope};

use crate::access::{Access, Action};
use crate::app::{App, Schema};
use crate::assets::VERSION;
pub(crate) use crate::guard::Asked;
use crate::params::{Params, link};
use crate::problem::Problem;

pub(crate) const HTML: &str = "text/html; charset=utf-8";

/// A request to a page of a schema.
#[derive(Clone)]
pub(crate) struct Page {
    pub(crate) app: Arc<App>,
    pub(crate) schema: Arc<Schema>,
    pub(crate) asked: Asked,
    pub(crate) params: Params,
}

impl FromRequestParts<Arc<App>> for Page {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Response> {
        let not_found = |says: &'static str| (StatusCode::NOT_FOUND, says).into_response();
        let Ok(Path(name)) = Path::<String>::from_request_parts(parts, app).await else {
            return Err(not_found("there is no such page"));
        };
        let schema =
            app.schema(&name).ok_or_else(|| not_found("this page does not show that schema"))?;
        // The guard puts it there.
        let asked =
            parts.extensions.get::<Asked>().ok_or_else(|| not_found("there is no such page"))?;
        Ok(Self {
            app: Arc::clone(app),
            schema: Arc::clone(schema),
            asked: asked.clone(),
            params: Params::parse(parts.uri.query().unwrap_or_default().as_bytes()),
        })
    }
}

/// A key that the visitor asks for by scope and key.
pub(crate) struct Named {
    pub(crate) scope: Scope,
    pub(crate) key: Key,
}

impl Named {
    pub(crate) fn of(params: &Params) -> Result<Self, Problem> {
        Ok(Self { scope: Scope::new(params.get("scope"))?, key: Key::new(params.get("key"))? })
    }

    pub(crate) fn link(&self, page: &str) -> String {
        link(page, &[("scope", self.scope.as_str()), ("key", self.key.as_str())])
    }
}

impl Page {
    /// Whether the visitor may do this here: their access and, unless it only shows, a database that takes writes.
    pub(crate) async fn may(&self, action: Action) -> bool {
        self.asked.visitor.access.may(action)
            && (action == Action::Reveal || self.schema.takes_writes().await)
    }

    pub(crate) async fn frame(&self, title: &'static str, current: &'static str) -> Frame {
        let paused = self.params.get("live") == "off";
        Frame {
            title,
            current,
            schema: self.schema.name.clone(),
            others: self.others(),
            nonce: self.asked.nonce.clone(),
            token: self.asked.token.clone(),
            version: VERSION,
            name: self.asked.visitor.name.clone(),
            mode: self.mode().await,
            keep: if paused { "?live=off" } else { "" },
            live: None,
            done: done(self.params.get("done")),
            problem: None,
            back: None,
        }
    }

    fn others(&self) -> Vec<String> {
        let names = self.app.schemas.iter().map(|schema| schema.name.clone());
        names.filter(|name| *name != self.schema.name).collect()
    }

    /// Why nothing can be changed here.
    async fn mode(&self) -> Option<&'static str> {
        match &self.asked.visitor.access {
            Access::ReadOnly => Some("read only"),
            _ if !self.schema.takes_writes().await => {
                Some("read only: the database takes no writes")
            }
            _ => None,
        }
    }
}

/// What stands around every page's content.
pub(crate) struct Frame {
    pub(crate) title: &'static str,
    /// The page in the navigation that this one belongs to.
    pub(crate) current: &'static str,
    pub(crate) schema: String,
    pub(crate) others: Vec<String>,
    pub(crate) nonce: String,
    pub(crate) token: String,
    pub(crate) version: &'static str,
    pub(crate) name: String,
    pub(crate) mode: Option<&'static str>,
    /// Keeps updates paused on the next page.
    pub(crate) keep: &'static str,
    pub(crate) live: Option<Live>,
    pub(crate) done: Option<&'static str>,
    pub(crate) problem: Option<Problem>,
    /// Where to look again after a problem.
    pub(crate) back: Option<String>,
}

/// A page that updates itself.
pub(crate) struct Live {
    /// The page itself, with its filters.
    pub(crate) here: String,
    /// The same, with updates paused, or going on.
    pub(crate) toggle: String,
    pub(crate) paused: bool,
}

impl Frame {
    /// Lets the page update itself. `fields`: what its address carries.
    pub(crate) fn updating(mut self, page: &str, fields: &[(&str, &str)]) -> Self {
        let paused = !self.keep.is_empty();
        let mut off = fields.to_vec();
        off.push(("live", "off"));
        let (here, off) = (link(page, fields), link(page, &off));
        let toggle = if paused { here.clone() } else { off };
        self.live = Some(Live { here, toggle, paused });
        self
    }

    pub(crate) fn with(self, problem: Option<Problem>) -> Self {
        Self { problem, ..self }
    }
}

/// What an action that has just been done says. Only these sentences can come from an address.
fn done(word: &str) -> Option<&'static str> {
    Some(match word {
        "released" => "Released. The next caller can begin the key at once.",
        "completed" => "Completed. Retries get the response that you entered.",
        "failed" => "Failed. Retries get the response that you entered, as a failure.",
        "resolved" => {
            "Resolved: it may run again, with all its attempts; recorded steps are not repeated. It runs when a client retries, or a Recovery picks it."
        }
        "redriven" => {
            "Redriven. The message will be handled at its next delivery: have the broker deliver it again."
        }
        _ => return None,
    })
}

/// A page without content: only what went wrong.
#[derive(Template)]
#[template(path = "problem.html")]
struct ProblemPage {
    frame: Frame,
}

pub(crate) fn html(status: StatusCode, page: &impl Template) -> Response {
    match page.render() {
        Ok(text) => (status, [(CONTENT_TYPE, HTML)], text).into_response(),
        // Writing to a string fails only if a value's Display does.
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// Leads the browser to a page beside this one.
pub(crate) fn see_other(to: &str) -> Response {
    // Links are percent-encoded: valid in a header.
    (StatusCode::SEE_OTHER, [(LOCATION, to)]).into_response()
}

/// The frame with the problem in place of content.
pub(crate) fn failed(frame: Frame, problem: Problem) -> Response {
    let status = problem.status;
    html(status, &ProblemPage { frame: frame.with(Some(problem)) })
}
