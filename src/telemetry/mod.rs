//! What pgonce tells of itself: metrics, the history, and the hash that stands for a key in a log.

pub(crate) mod event;
mod hash;
mod history;
#[cfg(feature = "metrics")]
pub(crate) mod meters;
#[cfg(feature = "metrics")]
pub mod names;
mod settings;
pub(crate) mod spans;

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tracing::Span;

pub(crate) use event::Event;
use hash::Hasher;
pub use history::History;
#[cfg(feature = "metrics")]
use meters::Meters;

use crate::error::{Error, ErrorKind, Result};
use crate::operation::Operation;
use crate::operation::class::Class;
use crate::operation::key::Key;
use crate::operation::scope::Scope;
use crate::protocol::answer::Begin;

/// Of one client and its clones.
#[derive(Debug, Default)]
pub(crate) struct Telemetry {
    settings: Settings,
    classes: RwLock<HashMap<Class, Arc<Counts>>>,
}

#[derive(Debug, Clone, Default)]
struct Settings {
    hasher: Hasher,
    #[cfg_attr(not(feature = "metrics"), allow(dead_code, reason = "nothing counts"))]
    value_unit: Option<Arc<str>>,
    history: Option<History>,
}

/// Further classes are counted as one.
const CLASSES_MAX: usize = 100;

impl Telemetry {
    /// With the secret of the hashes in logs.
    pub(crate) fn with_secret(&self, secret: &[u8]) -> Result<Self> {
        Ok(Self::of_settings(Settings { hasher: Hasher::new(secret)?, ..self.settings.clone() }))
    }

    pub(crate) fn with_value_unit(&self, unit: &str) -> Self {
        Self::of_settings(Settings { value_unit: Some(unit.into()), ..self.settings.clone() })
    }

    pub(crate) fn with_history(&self, history: &History) -> Self {
        Self::of_settings(Settings { history: Some(history.clone()), ..self.settings.clone() })
    }

    fn of_settings(settings: Settings) -> Self {
        Self { settings, classes: RwLock::default() }
    }

    pub(crate) fn hash(&self, scope: &str, key: &str) -> String {
        self.settings.hasher.hash(scope, key)
    }

    pub(crate) fn of(&self, class: &Class) -> Arc<Counts> {
        let known = self.classes.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(counts) = known.get(class) {
            return Arc::clone(counts);
        }
        drop(known);
        let mut known = self.classes.write().unwrap_or_else(PoisonError::into_inner);
        let other = Class::other();
        let class = if known.len() < CLASSES_MAX { class } else { &other };
        let new = || Arc::new(Counts::new(class, &self.settings));
        Arc::clone(known.entry(class.clone()).or_insert_with(new))
    }
}

#[cfg(feature = "metrics")]
static DESCRIBED: std::sync::Once = std::sync::Once::new();

/// What is counted of a class.
#[derive(Debug)]
pub(crate) struct Counts {
    class: Class,
    hasher: Hasher,
    history: Option<History>,
    #[cfg(feature = "metrics")]
    meters: Meters,
}

impl Counts {
    fn new(class: &Class, settings: &Settings) -> Self {
        #[cfg(feature = "metrics")]
        DESCRIBED.call_once(meters::describe);
        Self {
            class: class.clone(),
            hasher: settings.hasher.clone(),
            history: settings.history.clone(),
            #[cfg(feature = "metrics")]
            meters: Meters::new(class, settings.value_unit.as_deref()),
        }
    }

    pub(crate) fn hash(&self, scope: &str, key: &str) -> String {
        self.hasher.hash(scope, key)
    }

    pub(crate) fn count(&self, scope: &Scope, event: Event) {
        self.count_in(scope.as_str(), event);
    }

    fn count_in(&self, scope: &str, event: Event) {
        if let Some(history) = &self.history {
            history.count(scope, &self.class, event);
        }
        #[cfg(feature = "metrics")]
        self.meters.count(event);
    }

    /// A call on this operation begins.
    pub(crate) fn begun(&self, span: &Span, op: &Operation) {
        self.count(&op.scope, Event::Begun);
        self.name(span, &op.scope, &op.key);
    }

    /// A stored response instead of work: a duplicate is prevented.
    pub(crate) fn duplicate(&self, scope: &Scope, value: u64) {
        if let Some(history) = &self.history {
            history.replayed(scope, &self.class, value);
        }
        #[cfg(feature = "metrics")]
        self.meters.duplicate(value);
    }

    /// What a call would have been told, if its key were not only observed.
    pub(crate) fn observed(&self, op: &Operation, told: &Begin) {
        let event = match told {
            Begin::Started(_) => return,
            Begin::Replay(_) => Event::ObservedReplayed,
            Begin::InProgress(_) => Event::ObservedInProgress,
            Begin::Mismatch(_) => Event::ObservedMismatch,
            Begin::Held(_) => Event::ObservedHeld,
        };
        self.count(&op.scope, event);
        if let Some(history) = &self.history
            && matches!(event, Event::ObservedReplayed | Event::ObservedInProgress)
        {
            history.would_be_duplicate(&op.scope, &self.class, op.value);
        }
    }

    /// A request without a key. Its scope is not asked for: only a key needs one.
    #[cfg_attr(not(feature = "tower"), allow(dead_code, reason = "only requests have no key"))]
    pub(crate) fn unkeyed(&self) {
        self.count_in("", Event::Unkeyed);
    }

    /// What the HTTP layer did with a request: the code of an answer.
    #[cfg(feature = "tower")]
    #[cfg_attr(not(feature = "metrics"), allow(unused_variables, reason = "nothing counts"))]
    pub(crate) fn http_answer(&self, code: &'static str) {
        #[cfg(feature = "metrics")]
        self.meters.labelled(names::HTTP_ANSWERS, "answer", code);
    }

    /// What a stricter route would have done.
    #[cfg(feature = "tower")]
    #[cfg_attr(not(feature = "metrics"), allow(unused_variables, reason = "nothing counts"))]
    pub(crate) fn http_observed(&self, code: &'static str) {
        #[cfg(feature = "metrics")]
        self.meters.labelled(names::HTTP_OBSERVED, "answer", code);
    }

    #[cfg_attr(not(feature = "metrics"), allow(unused_variables, reason = "nothing counts"))]
    pub(crate) fn waited(&self, time: Duration) {
        #[cfg(feature = "metrics")]
        self.meters.waited(time);
    }

    /// The end of a claim, or the error that came instead.
    pub(crate) fn ended(&self, scope: &Scope, key: &Key, event: Event, ended: &Result<()>) {
        match ended {
            Ok(()) => self.count(scope, event),
            Err(error) => self.note(scope, key, error),
        }
    }

    /// Counts and logs an error that the person on call must know of: a lost claim, or a commit without an answer.
    pub(crate) fn note(&self, scope: &Scope, key: &Key, error: &Error) {
        let (event, says) = match error.kind() {
            ErrorKind::ClaimLost => (Event::ClaimLost, "a claim was lost"),
            ErrorKind::CommitUnknown => {
                (Event::CommitUnknown, "a commit got no answer; the same key finds out")
            }
            _ => return,
        };
        self.count(scope, event);
        tracing::warn!(
            key = self.hash(scope.as_str(), key.as_str()),
            sqlstate = error.sqlstate(),
            "{says}"
        );
    }
}

/// A recovery's handler has ended, in one of two ways: *done* or *failed*.
#[cfg_attr(not(feature = "metrics"), allow(unused_variables, reason = "nothing counts"))]
pub(crate) fn recovered(outcome: &'static str) {
    #[cfg(feature = "metrics")]
    meters::add(names::RECOVERIES, &[("outcome", outcome)], 1);
}

/// A reaping has ended well.
#[cfg_attr(not(feature = "metrics"), allow(unused_variables, reason = "nothing counts"))]
pub(crate) fn reaped(schema: &str, deleted: u64, backlog: u64, oldest_overdue: Duration) {
    #[cfg(feature = "metrics")]
    {
        let labels = &[("schema", schema)];
        meters::add(names::REAPED, labels, deleted);
        meters::set(names::BACKLOG, labels, backlog as f64);
        meters::set(names::OLDEST_OVERDUE, labels, oldest_overdue.as_secs_f64());
        let since_1970 = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
        meters::set(names::REAPER_LAST, labels, since_1970.as_secs_f64());
    }
}
