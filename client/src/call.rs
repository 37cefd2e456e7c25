//! One call: its key, and what to do after each try. No input or output.

use std::time::{Duration, Instant, SystemTime};

use http::header::{CONTENT_TYPE, DATE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use uuid::Uuid;

use crate::Error;
use crate::policy::RetryPolicy;

/// The longest body that is read before the caller gets the answer.
const WHOLE_BYTES_MAX: u64 = 64 * 1024;

/// How a call went, in the extensions of its response.
///
/// ```no_run
/// # async fn example(client: reqwest_middleware::ClientWithMiddleware) -> Result<(), reqwest_middleware::Error> {
/// let response = client.post("https://api.example.com/charges").body("{}").send().await?;
/// let sent = response.extensions().get::<pgonce_client::Sent>().expect("of this client");
/// println!("{} tries, replayed: {}", sent.tries, sent.replayed);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// How often the request was sent.
    pub tries: u32,
    /// The server says that this is the response of an earlier request (`Idempotent-Replayed: true`).
    pub replayed: bool,
}

/// What came of a try.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Outcome {
    /// None: no answer came.
    pub(crate) status: Option<StatusCode>,
    pub(crate) pause: Option<Duration>,
    /// The server's word.
    pub(crate) retryable: Option<bool>,
    pub(crate) replayed: bool,
    /// The server says that it has not noted the key (`Idempotency-Status: ignored`).
    pub(crate) ignored: bool,
}

#[derive(Debug, PartialEq)]
pub(crate) enum Next {
    Return,
    AgainAfter(Duration),
}

#[derive(Debug)]
pub(crate) struct Call {
    policy: RetryPolicy,
    begun: Instant,
    tries: u32,
    /// May be sent again at all.
    repeatable: bool,
    /// May be sent again without a key.
    idempotent: bool,
}

impl Outcome {
    /// `body`: if it was read whole.
    pub(crate) fn of(status: StatusCode, headers: &HeaderMap, body: Option<&[u8]>) -> Self {
        let is = |name: &str, word: &str| {
            headers.get(name).is_some_and(|it| it.as_bytes().eq_ignore_ascii_case(word.as_bytes()))
        };
        let stripes = match () {
            () if is("stripe-should-retry", "true") => Some(true),
            () if is("stripe-should-retry", "false") => Some(false),
            () => None,
        };
        let problem = body
            .filter(|_| has_problem(status, headers))
            .and_then(|body| serde_json::from_slice::<serde_json::Value>(body).ok());
        let retryable = stripes.or_else(|| problem?.get("retryable")?.as_bool());
        let pause = pause(headers, SystemTime::now());
        let replayed = is("idempotent-replayed", "true");
        let ignored = is("idempotency-status", "ignored");
        Self { status: Some(status), pause, retryable, replayed, ignored }
    }

    /// Of an answer whose body broke off. A success must be asked for again; what a failure says stands in its head.
    pub(crate) fn broken(status: StatusCode, headers: &HeaderMap) -> Self {
        if status.as_u16() < 400 { Self::default() } else { Self::of(status, headers, None) }
    }

    fn may_come_again(&self) -> bool {
        let by_status = || match self.status.map(|status| status.as_u16()) {
            None => true,
            Some(_) if self.replayed => false, // a stored response does not change
            Some(code) => matches!(code, 409 | 425 | 429 | 502 | 503 | 504),
        };
        self.retryable.unwrap_or_else(by_status)
    }
}

/// Whether the body is read before the caller gets the answer: so that a connection that breaks in it is a broken try,
/// and a problem document can be looked at, also one whose length is not told.
pub(crate) fn is_read(status: StatusCode, headers: &HeaderMap, length: Option<u64>) -> bool {
    length.map_or_else(|| has_problem(status, headers), |length| length <= WHOLE_BYTES_MAX)
}

/// Whether the body is a problem document (RFC 9457).
fn has_problem(status: StatusCode, headers: &HeaderMap) -> bool {
    const KIND: &str = "application/problem+json";
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let kind = kind.and_then(|kind| kind.split(';').next());
    status.as_u16() >= 400 && kind.is_some_and(|kind| kind.trim().eq_ignore_ascii_case(KIND))
}

/// `Retry-After`: seconds, or a date (RFC 9110, section 10.2.3), by the server's clock if it says its time.
fn pause(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let value = text(RETRY_AFTER)?.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than a number has are a long time, too.
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    let date = |text| httpdate::parse_http_date(text).ok();
    let now = text(DATE).and_then(date).unwrap_or(now);
    Some(date(value)?.duration_since(now).unwrap_or_default())
}

impl Call {
    /// Gives the request its key and its id, once for all tries.
    pub(crate) fn begin(policy: &RetryPolicy, method: &Method, headers: &mut HeaderMap) -> Self {
        if policy.methods.contains(method) && !headers.contains_key(&policy.header) {
            let mut key = Uuid::new_v4().to_string();
            if policy.quoted {
                key = format!("\"{key}\"");
            }
            if let Ok(mut key) = HeaderValue::from_str(&key) {
                key.set_sensitive(true); // no log shows it
                headers.insert(&policy.header, key);
            }
        }
        if let Some(name) = &policy.correlation
            && !headers.contains_key(name)
            && let Ok(id) = HeaderValue::from_str(&Uuid::new_v4().to_string())
        {
            headers.insert(name, id);
        }
        let idempotent = method.is_idempotent();
        let repeatable = headers.contains_key(&policy.header) || idempotent;
        Self { policy: policy.clone(), begun: Instant::now(), tries: 0, repeatable, idempotent }
    }

    /// Whether its body must be sendable twice.
    pub(crate) fn is_repeatable(&self) -> bool {
        self.repeatable && self.policy.tries_max > 1
    }

    /// Counts a try. The time that it has; none after the deadline.
    pub(crate) fn try_now(&mut self) -> Option<Duration> {
        let left = self.policy.deadline.checked_sub(self.begun.elapsed())?;
        self.tries += 1;
        Some(left.min(self.policy.try_deadline))
    }

    /// The error of a try that had no answer in its time.
    pub(crate) fn over(&self) -> Error {
        let is_last = self.begun.elapsed() >= self.policy.deadline;
        let deadline = if is_last { self.policy.deadline } else { self.policy.try_deadline };
        Error::Deadline { deadline, tries: self.tries }
    }

    /// What to do after a try.
    pub(crate) fn after(&self, outcome: &Outcome) -> Next {
        let noted = self.idempotent || !outcome.ignored;
        let again = self.repeatable && noted && outcome.may_come_again();
        if !again {
            if outcome.status.is_some() {
                self.policy.budget.give_back(self.tries.saturating_sub(1));
            }
            return Next::Return;
        }
        let pause =
            outcome.pause.unwrap_or_default().saturating_add(self.policy.jitter(self.tries));
        let in_time = self.begun.elapsed().saturating_add(pause) < self.policy.deadline;
        if self.tries < self.policy.tries_max && in_time && self.policy.budget.take() {
            Next::AgainAfter(pause)
        } else {
            Next::Return
        }
    }

    pub(crate) fn sent(&self, outcome: &Outcome) -> Sent {
        Sent { tries: self.tries, replayed: outcome.replayed }
    }
}

#[cfg(test)]
#[path = "call_tests.rs"]
mod tests;
