//! The metrics that pgonce emits through the [`metrics`] facade, each with its kind, unit, labels and description.
//!
//! Install a recorder before the first call of a client: its counters are registered then, once for each class, so that
//! a call pays for atomic additions only. OpenTelemetry users bridge the facade; Prometheus writes `.` as `_`.
//!
//! Every metric of an operation has the label `class` ([`Class`](crate::Class)), and no label ever has a scope or a key.
//!
//! ```
//! for metric in pgonce::metrics::ALL {
//!     println!("{} ({}): {}", metric.name, metric.unit, metric.description);
//! }
//! ```

/// A metric as it is registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Metric {
    /// Its dotted name.
    pub name: &'static str,
    /// Whether it is a counter, a gauge or a histogram.
    pub kind: MetricKind,
    /// The unit, in [UCUM](https://ucum.org/).
    pub unit: &'static str,
    /// The labels, each with a bounded number of values.
    pub labels: &'static [&'static str],
    /// What it counts.
    pub description: &'static str,
}

/// The kinds of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum MetricKind {
    /// Only goes up.
    Counter,
    /// Goes up and down.
    Gauge,
    /// A distribution.
    Histogram,
}

macro_rules! metrics {
    ($($(#[$doc:meta])* $constant:ident = $kind:ident $name:literal [$unit:literal] {$($label:literal),*} $description:literal;)*) => {
        $(
            #[doc = $description]
            pub const $constant: Metric = Metric {
                name: $name,
                kind: MetricKind::$kind,
                unit: $unit,
                labels: &[$($label),*],
                description: $description,
            };
        )*
        /// All of them.
        pub const ALL: &[Metric] = &[$($constant),*];
    };
}

metrics! {
    BEGUN = Counter "pgonce.begun" ["{call}"] {"class"}
        "Calls that asked for a key.";
    STARTED = Counter "pgonce.started" ["{call}"] {"class"}
        "Calls that got their key and ran their work.";
    RECOVERED = Counter "pgonce.recovered" ["{call}"] {"class"}
        "Started calls that took over the lapsed claim of another holder.";
    REPLAYED = Counter "pgonce.replayed" ["{call}"] {"class"}
        "Calls that got the stored response of a finished operation.";
    OMITTED = Counter "pgonce.omitted" ["{call}"] {"class"}
        "Replays without a body, because it was not kept.";
    IN_PROGRESS = Counter "pgonce.in_progress" ["{call}"] {"class"}
        "Calls that were told that another caller works on their key.";
    MISMATCH = Counter "pgonce.mismatch" ["{call}"] {"class"}
        "Calls whose key belongs to another request.";
    HELD = Counter "pgonce.held" ["{call}"] {"class"}
        "Calls whose key waits for an operator, and dead messages.";
    COMPLETED = Counter "pgonce.completed" ["{operation}"] {"class"}
        "Operations that finished with a response.";
    FAILED = Counter "pgonce.failed" ["{operation}"] {"class"}
        "Operations that finished with a kept failure.";
    RELEASED = Counter "pgonce.released" ["{call}"] {"class"}
        "Calls whose work ended without an outcome that is kept: rolled back, released or lapsed. The key can be begun again.";
    CLAIM_LOST = Counter "pgonce.claim_lost" ["{call}"] {"class"}
        "Holders that found their claim taken over, released or forgotten.";
    COMMIT_UNKNOWN = Counter "pgonce.commit_unknown" ["{call}"] {"class"}
        "Commits without an answer: the same key finds out.";
    RESTARTS = Counter "pgonce.restarts" ["{restart}"] {"class"}
        "How often work was started again after a serialization failure or a deadlock (40001, 40P01).";
    WAITED = Histogram "pgonce.waited" ["s"] {"class"}
        "How long calls waited for another caller on their key.";
    LEASE_RENEWALS = Counter "pgonce.lease_renewals" ["{renewal}"] {"class", "outcome"}
        "Renewals of leases by heartbeats; outcome: renewed or failed.";
    VERDICTS = Counter "pgonce.inbox.verdicts" ["{message}"] {"class", "verdict"}
        "What Inbox::handle told the broker; verdict: ack, retry or dead_letter.";
    DUPLICATES = Counter "pgonce.duplicates" ["{call}"] {"class"}
        "Duplicates prevented: calls and messages whose work did not run again, because their operation was finished.";
    DUPLICATES_VALUE = Counter "pgonce.duplicates.value" ["1"] {"class", "unit"}
        "The value of the duplicates prevented, as given by Operation::value, in the unit named by PgOnce::value_unit.";
    UNKEYED = Counter "pgonce.unkeyed" ["{request}"] {"class"}
        "Requests that came without a key to a route that would honor one.";
    OBSERVED = Counter "pgonce.observed" ["{call}"] {"class", "answer"}
        "What calls would have been told where keys are only observed; answer: replayed, in_progress, mismatch or held.";
    RECOVERIES = Counter "pgonce.recoveries" ["{operation}"] {"outcome"}
        "Abandoned operations that a Recovery handed to its handler; outcome: done or failed.";
    REAPED = Counter "pgonce.reaped" ["{key}"] {"schema"}
        "Keys that were deleted after their retention.";
    BACKLOG = Gauge "pgonce.reaper.backlog" ["{key}"] {"schema"}
        "Keys past their retention that are not deleted yet, as the last reaping found them.";
    OLDEST_OVERDUE = Gauge "pgonce.reaper.oldest_overdue" ["s"] {"schema"}
        "For how long the oldest of these keys has been past its retention.";
    REAPER_LAST = Gauge "pgonce.reaper.last" ["s"] {"schema"}
        "When a reaping last ended well, in seconds since 1970: a reaper that stopped does not move it.";
    HTTP_ANSWERS = Counter "pgonce.http.answers" ["{request}"] {"class", "answer"}
        "What the HTTP layer did with requests; answer: the code of an Answer.";
    HTTP_OBSERVED = Counter "pgonce.http.observed" ["{request}"] {"class", "answer"}
        "What a stricter route would have answered: routes that observe, and transactions that were not used.";
}
