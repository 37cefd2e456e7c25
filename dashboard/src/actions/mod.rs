//! What changes a key, or shows what is stored: each is asked first, refused if the key has changed, and logged.

pub(crate) mod redrive;
pub(crate) mod release;
pub(crate) mod resolve;
pub(crate) mod reveal;

use axum::response::Response;
use pgonce::sqlx::{Postgres, Transaction};
use pgonce::{Details, Record};

use crate::access::Action;
use crate::audit;
use crate::page::{Frame, Named, Page, failed, see_other};
use crate::pages::key::{Known, allows, find};
use crate::params::{Params, link};
use crate::problem::Problem;

/// A key that the visitor may act on, as it is now.
pub(crate) struct Asking {
    pub(crate) frame: Frame,
    pub(crate) named: Named,
    pub(crate) known: Known,
}

/// Looks at the key before the visitor is asked to confirm. An error is the page to show.
pub(crate) async fn asking(
    page: &Page,
    title: &'static str,
    action: Action,
) -> Result<Asking, Response> {
    let frame = page.frame(title, "keys").await;
    let found = async {
        let named = Named::of(&page.params)?;
        permitted(page, action).await?;
        let known = find(page, &named).await?;
        if !allows(&known, action) {
            return Err(Problem::refused(unfit(&known.details, action)));
        }
        Ok((named, known))
    };
    match found.await {
        Ok((named, known)) => Ok(Asking { frame, named, known }),
        Err(problem) => Err(failed(frame, problem)),
    }
}

async fn permitted(page: &Page, action: Action) -> Result<(), Problem> {
    match page.asked.visitor.access.may(action) {
        false => Err(Problem::forbidden("You may look at this page, but not do this.")),
        true if page.may(action).await => Ok(()),
        true => {
            Err(Problem::forbidden("The database takes no writes. It is a standby, or read-only."))
        }
    }
}

/// Why the state does not allow the action, as a clause.
fn unfit(details: &Details, action: Action) -> &'static str {
    match action {
        _ if details.overdue => "the key is forgotten",
        Action::Release | Action::Resolve if details.record.completed_at.is_some() => {
            "the operation is finished"
        }
        Action::Release => "the claim is released already",
        Action::Resolve => "the claim is live, and its holder may still be at work",
        Action::Redrive => "the key is no message that waits for an operator",
        Action::Reveal => "there is nothing to show",
    }
}

/// A confirmed form that may be acted on: its key as it was shown, in an open transaction.
pub(crate) struct Confirmed {
    pub(crate) named: Named,
    pub(crate) record: Record,
    pub(crate) tx: Transaction<'static, Postgres>,
}

impl Confirmed {
    /// Checks the form's token, the right to act, and that the key is still as it was shown.
    pub(crate) async fn check(page: &Page, action: Action, form: &Params) -> Result<Self, Problem> {
        check_token(page, form)?;
        permitted(page, action).await?;
        let named = Named::of(form)?;
        let mut tx = page.schema.database.act(&page.asked.visitor.name).await?;
        let details = page.schema.once.details(&mut tx, &named.scope, &named.key).await?;
        let record =
            details.ok_or_else(|| Problem::not_found("No such key in this scope."))?.record;
        match record.seen == form.get("seen") {
            true => Ok(Self { named, record, tx }),
            false => Err(Problem::changed()),
        }
    }

    /// `done`: the word that the address carries back to the key's page.
    pub(crate) async fn commit(self, done: &'static str) -> Result<&'static str, Problem> {
        pgonce::commit(self.tx).await?;
        Ok(done)
    }
}

/// Logs how an action ended, and leads back to the key.
pub(crate) async fn settle(
    page: &Page,
    action: Action,
    form: &Params,
    outcome: Result<&'static str, Problem>,
) -> Response {
    let (scope, key) = (form.get("scope"), form.get("key"));
    audit::log(page, action, scope, key, outcome.as_ref().copied());
    match outcome {
        Ok(done) => {
            page.schema.forget_figures();
            see_other(&link("key", &[("scope", scope), ("key", key), ("done", done)]))
        }
        Err(problem) => {
            let mut frame = page.frame("Nothing was done", "keys").await;
            frame.back = Some(link("key", &[("scope", scope), ("key", key)]));
            failed(frame, problem)
        }
    }
}

/// The form repeats the browser's cookie, which another site can neither read nor send.
pub(crate) fn check_token(page: &Page, form: &Params) -> Result<(), Problem> {
    match form.get("token") == page.asked.token {
        true => Ok(()),
        false => Err(Problem::forbidden(
            "Nothing was done: the form has no valid token. Open the page anew, and confirm again.",
        )),
    }
}
