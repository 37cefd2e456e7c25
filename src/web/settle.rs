//! What becomes of the key when the handler has answered.

use std::fmt;
use std::sync::Arc;

use http::{HeaderMap, StatusCode};

use super::layer::IdempotencyLayer;

/// A handler's own word on what becomes of its key, put into the response's extensions (with feature
/// `axum`: returned as a part of the response). It overrides the route's rule for statuses.
///
/// ```
/// use pgonce::web::Settle;
/// let mut response = http::Response::builder().status(409).body("limit reached")?;
/// response.extensions_mut().insert(Settle::Fail); // final, although the rule may think otherwise
/// # Ok::<(), http::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Settle {
    /// Keep the writes, store the response, replay it. The rule for 2xx and 3xx.
    Complete,
    /// Undo the writes, store the response, replay it: a failure that is final. The rule for 4xx of the
    /// handler's own, but not for 401, 403, 405, 408, 413, 415 and 429.
    Fail,
    /// Undo the writes and store nothing: the key is free, and a retry runs the handler again. The
    /// rule for 5xx, for what an extractor rejects, and for the statuses above. On a leased route whose handler has
    /// asked for a derived key or opened its transaction, now or in an earlier attempt, the key is not free: it stays
    /// with its request, which may begin again at once; with `OnLapse::Hold` it waits for an operator.
    Release,
    /// The handler does not know whether its outside work took effect. On a leased route the claim is
    /// left to lapse, and then taken over or held, as [`on_lapse`](crate::Policy::on_lapse)
    /// says. The rule for 5xx, 408 and panics where that is `OnLapse::Hold`. On a transactional route the same as `Release`: everything is undone.
    Lapse,
}

/// Put into a response's extensions, keeps it out of the table: it is stored as *omitted*. The key still
/// blocks a second run, and a retry learns that the operation is done.
///
/// ```
/// let mut response = http::Response::new("a new password");
/// response.extensions_mut().insert(pgonce::web::Secret);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Secret;

impl IdempotencyLayer {
    /// Stores 5xx of the handler's own too, as the first version of Stripe's interface does: their writes
    /// are undone and retries get the same error.
    #[must_use]
    pub fn store_server_errors(mut self) -> Self {
        self.final_statuses = FinalStatuses::Default { server_errors: true };
        self
    }

    /// Which statuses of 400 and above are final when they are the handler's own: stored and replayed,
    /// their writes undone. By default 4xx but 401, 403, 405, 408, 413, 415 and 429.
    ///
    /// A status counts as the handler's own once it has used its [`OnceTx`](super::OnceTx) or
    /// [`OnceClaim`](super::OnceClaim); before that it may be an extractor's, and nothing has
    /// happened. [`Settle`](super::Settle) on a response overrides all of this.
    #[must_use]
    pub fn final_statuses<F>(mut self, are_final: F) -> Self
    where
        F: Fn(StatusCode) -> bool + Send + Sync + 'static,
    {
        self.final_statuses = FinalStatuses::Custom(Arc::new(are_final));
        self
    }

    /// Refuses a success of a transactional handler that has never used its [`OnceTx`](super::OnceTx), with 500: what it
    /// has written elsewhere, through the pool, is not undone when it fails, and a retry writes it again. Without
    /// this there is a warning in the log, and the route counts it
    /// ([`Answer::TransactionUnused`](super::Answer::TransactionUnused)). For routes whose every success
    /// reads or writes through the transaction.
    #[must_use]
    pub fn refuse_unused_tx(mut self) -> Self {
        self.unused_tx_refused = true;
        self
    }

    /// Tells failures that their status hides: an error in a header, or in a body that comes with 200, as GraphQL has
    /// it. Gets the status, the headers and the body; no body if it is longer than what is stored, or does not say
    /// how long it is. `None` leaves it to the rule for statuses, and [`Settle`] in the response overrides both.
    ///
    /// ```
    /// # use pgonce::web::{IdempotencyLayer, Settle};
    /// # fn example(idempotency: IdempotencyLayer) -> IdempotencyLayer {
    /// idempotency.classify(|_, _, body| {
    ///     let answer: serde_json::Value = serde_json::from_slice(body?).ok()?;
    ///     answer.get("errors").map(|_| Settle::Release)
    /// })
    /// # }
    /// ```
    #[must_use]
    pub fn classify<F>(mut self, classify: F) -> Self
    where
        F: Fn(StatusCode, &HeaderMap, Option<&[u8]>) -> Option<Settle> + Send + Sync + 'static,
    {
        self.classify = Some(Arc::new(classify));
        self
    }
}

/// What a route makes of a response, by more than its status.
pub(crate) type Classify =
    Arc<dyn Fn(StatusCode, &HeaderMap, Option<&[u8]>) -> Option<Settle> + Send + Sync>;

/// Which statuses of 400 and above are final.
#[derive(Clone)]
pub(crate) enum FinalStatuses {
    Default { server_errors: bool },
    Custom(Arc<dyn Fn(StatusCode) -> bool + Send + Sync>),
}

impl FinalStatuses {
    fn contains(&self, status: StatusCode) -> bool {
        match self {
            Self::Default { server_errors } if status.is_server_error() => *server_errors,
            // What stands for the moment and not for the operation: who asks, how, how often.
            Self::Default { .. } => {
                !matches!(status.as_u16(), 401 | 403 | 405 | 408 | 413 | 415 | 429)
            }
            Self::Custom(contains) => contains(status),
        }
    }

    /// `used`: the handler has touched its transaction or claim. Before that a 4xx or 5xx may be an
    /// extractor's, and nothing has happened either way.
    pub(crate) fn settle(&self, status: StatusCode, used: bool) -> Settle {
        if status.as_u16() < 400 {
            Settle::Complete
        } else if used && self.contains(status) {
            Settle::Fail
        } else {
            Settle::Release
        }
    }
}

impl fmt::Debug for FinalStatuses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default { server_errors } => write!(f, "Default(server errors: {server_errors})"),
            Self::Custom(_) => f.write_str("Custom(..)"),
        }
    }
}
