//! The rules of well-known interfaces, as settings of a layer.

use std::time::Duration;

use http::{Method, StatusCode};

use super::layer::IdempotencyLayer;
use crate::error::Result;
use crate::operation::policy::OnLapse;

const DAY: Duration = Duration::from_secs(86_400);

impl IdempotencyLayer {
    /// Keys as in [Stripe's API v1](https://docs.stripe.com/api/idempotent_requests): optional, on POST only, remembered
    /// for 24 hours. A success is replayed. So is a failure that is [the handler's own](crate::_docs::http#what-is-kept),
    /// 500 included, but not 401, 409 and 429; its writes are undone. After a panic a retry runs the handler again.
    ///
    /// Changes [`optional`](Self::optional), [`methods`](Self::methods), [`final_statuses`](Self::final_statuses), the
    /// retention of successes and failures, and [`on_lapse`](crate::Policy::on_lapse); settings that follow override it.
    /// [`policy`](Self::policy) replaces the retention, too: call it before. Unlike Stripe, a key of another request is answered with 422 instead of 400.
    ///
    /// On a [leased](Self::leased) route a 5xx is final even if the remote has acted. If the handler does not know, let it
    /// return [`Settle::Lapse`](super::Settle::Lapse).
    ///
    /// ```
    /// # use pgonce::web::IdempotencyLayer;
    /// # fn example(idempotency: IdempotencyLayer) -> pgonce::Result<IdempotencyLayer> {
    /// idempotency.as_stripe_v1()
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) when the lease of a [leased](Self::leased) route is longer than
    /// 24 hours.
    pub fn as_stripe_v1(self) -> Result<Self> {
        let policy = self.policy.retention(DAY)?.failed_retention(DAY)?.on_lapse(OnLapse::Retry);
        let are_final = |status: StatusCode| !matches!(status.as_u16(), 401 | 409 | 429);
        self.optional().methods([Method::POST]).final_statuses(are_final).policy(policy)
    }

    /// Keys as in [Stripe's API v2](https://docs.stripe.com/api-v2-overview#idempotency): optional, on POST and DELETE,
    /// remembered for 30 days. A success is replayed and never repeated. Failed and interrupted work is not final: a
    /// retry runs the handler again, until it succeeds or [`Settle::Fail`](super::Settle::Fail) ends it.
    ///
    /// Meant for [leased](Self::leased) routes: the retry calls remotes with the same
    /// [derived keys](super::OnceClaim::derived_key), and a key whose holder is gone is taken over. To skip parts that are
    /// done, record them: call [`run_leased`](crate::PgOnce::run_leased) in the handler, without a layer. On a
    /// transactional route a failure is undone, and the retry begins anew.
    ///
    /// Changes [`optional`](Self::optional), [`methods`](Self::methods), [`final_statuses`](Self::final_statuses), the
    /// retention and [`on_lapse`](crate::Policy::on_lapse); settings that follow override it. [`policy`](Self::policy)
    /// replaces the retention, too: call it before. With [`max_attempts`](crate::Policy::max_attempts), retries of work
    /// that may have called a remote end at an operator.
    ///
    /// ```
    /// # use pgonce::{Lease, web::IdempotencyLayer};
    /// # use std::time::Duration;
    /// # fn example(idempotency: IdempotencyLayer) -> pgonce::Result<IdempotencyLayer> {
    /// idempotency.leased(Lease::new(Duration::from_secs(30))?)?.as_stripe_v2()
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) when the lease is longer than 30 days.
    pub fn as_stripe_v2(self) -> Result<Self> {
        let policy = self.policy.retention(30 * DAY)?.on_lapse(OnLapse::Retry);
        self.optional()
            .methods([Method::POST, Method::DELETE])
            .final_statuses(|_| false)
            .policy(policy)
    }

    /// Keys by the letter of the [IETF draft](https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/07/):
    /// required, in the header `Idempotency-Key`, written as a string in quotes, on POST and PATCH. Problem answers link to
    /// `docs`, your page about keys, with `#` and their code: 400 without a key, 409 while the first request runs, 422 for
    /// another request. The page has to publish the retention; see [`specification`](Self::specification).
    ///
    /// Changes [`required`](Self::required), [`strict_keys`](Self::strict_keys), [`header`](Self::header),
    /// [`methods`](Self::methods) and [`docs`](Self::docs); settings that follow override it. It does not change which
    /// responses are stored.
    ///
    /// ```
    /// # use pgonce::web::IdempotencyLayer;
    /// # fn example(idempotency: IdempotencyLayer) -> IdempotencyLayer {
    /// idempotency.as_ietf_draft("https://api.example.com/docs/idempotency")
    /// # }
    /// ```
    #[must_use]
    pub fn as_ietf_draft(self, docs: impl AsRef<str>) -> Self {
        self.required()
            .header(http::HeaderName::from_static("idempotency-key"))
            .strict_keys()
            .methods([Method::POST, Method::PATCH])
            .docs(docs)
    }
}
