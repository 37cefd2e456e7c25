//! The registered metrics of a class. Counting with them is one atomic addition.

use std::fmt;
use std::time::Duration;

use metrics::{Counter, Histogram, Key, Label, Level, Metadata, SharedString, Unit};

use super::event::Event;
use super::names::{self, Metric, MetricKind};
use crate::operation::class::Class;

/// Of one class.
pub(crate) struct Meters {
    class: SharedString,
    events: [Counter; Event::COUNT],
    waited: Histogram,
    duplicates: Counter,
    value: Option<Counter>,
}

// By hand: the facade's counters are not all Debug.
impl fmt::Debug for Meters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Meters({})", self.class)
    }
}

impl Meters {
    pub(crate) fn new(class: &Class, value_unit: Option<&str>) -> Self {
        let class = SharedString::from(class.as_str().to_owned());
        let of_class = |metric: Metric| counter(metric, vec![Label::new("class", class.clone())]);
        let with = |metric: Metric, name: &'static str, value: String| {
            counter(metric, vec![Label::new("class", class.clone()), Label::new(name, value)])
        };
        let event = |event: usize| {
            let (metric, label) = of(Event::ALL[event]);
            match label {
                None => of_class(metric),
                Some((name, value)) => with(metric, name, value.to_owned()),
            }
        };
        Self {
            events: std::array::from_fn(event),
            waited: metrics::with_recorder(|recorder| {
                let key = key(names::WAITED, vec![Label::new("class", class.clone())]);
                recorder.register_histogram(&key, &METADATA)
            }),
            duplicates: of_class(names::DUPLICATES),
            value: value_unit.map(|unit| with(names::DUPLICATES_VALUE, "unit", unit.to_owned())),
            class,
        }
    }

    pub(crate) fn count(&self, event: Event) {
        self.events[event as usize].increment(1);
    }

    pub(crate) fn duplicate(&self, value: u64) {
        self.duplicates.increment(1);
        if let Some(counter) = &self.value {
            counter.increment(value);
        }
    }

    pub(crate) fn waited(&self, time: Duration) {
        self.waited.record(time.as_secs_f64());
    }

    /// Counts with one more label, which is registered each time.
    #[cfg(feature = "tower")]
    pub(crate) fn labelled(&self, metric: Metric, name: &'static str, value: &'static str) {
        let labels = vec![Label::new("class", self.class.clone()), Label::new(name, value)];
        counter(metric, labels).increment(1);
    }
}

/// Adds to a counter that no class keeps.
pub(crate) fn add(metric: Metric, labels: &[(&'static str, &str)], count: u64) {
    counter(metric, owned(labels)).increment(count);
}

/// Sets a gauge.
pub(crate) fn set(metric: Metric, labels: &[(&'static str, &str)], value: f64) {
    metrics::with_recorder(|recorder| {
        recorder.register_gauge(&key(metric, owned(labels)), &METADATA).set(value);
    });
}

fn owned(labels: &[(&'static str, &str)]) -> Vec<Label> {
    labels.iter().map(|(name, value)| Label::new(*name, (*value).to_owned())).collect()
}

fn counter(metric: Metric, labels: Vec<Label>) -> Counter {
    metrics::with_recorder(|recorder| recorder.register_counter(&key(metric, labels), &METADATA))
}

fn key(metric: Metric, labels: Vec<Label>) -> Key {
    Key::from_parts(metric.name, labels)
}

static METADATA: Metadata<'static> = Metadata::new("pgonce", Level::INFO, Some(module_path!()));

/// Tells the recorder what the metrics mean.
pub(crate) fn describe() {
    metrics::with_recorder(|recorder| {
        for metric in names::ALL {
            let name = metric.name.into();
            let unit = match metric.unit {
                "s" => Some(Unit::Seconds),
                _ => Some(Unit::Count),
            };
            let description = metric.description.into();
            match metric.kind {
                MetricKind::Counter => recorder.describe_counter(name, unit, description),
                MetricKind::Gauge => recorder.describe_gauge(name, unit, description),
                MetricKind::Histogram => recorder.describe_histogram(name, unit, description),
            }
        }
    });
}

/// The counter of an event, and the label that tells it from others with the same name.
fn of(event: Event) -> (Metric, Option<(&'static str, &'static str)>) {
    match event {
        Event::Begun => (names::BEGUN, None),
        Event::Started => (names::STARTED, None),
        Event::Recovered => (names::RECOVERED, None),
        Event::Replayed => (names::REPLAYED, None),
        Event::Omitted => (names::OMITTED, None),
        Event::InProgress => (names::IN_PROGRESS, None),
        Event::Mismatch => (names::MISMATCH, None),
        Event::Held => (names::HELD, None),
        Event::Completed => (names::COMPLETED, None),
        Event::Failed => (names::FAILED, None),
        Event::Released => (names::RELEASED, None),
        Event::ClaimLost => (names::CLAIM_LOST, None),
        Event::CommitUnknown => (names::COMMIT_UNKNOWN, None),
        Event::Restarted => (names::RESTARTS, None),
        Event::LeaseRenewed => (names::LEASE_RENEWALS, Some(("outcome", "renewed"))),
        Event::LeaseNotRenewed => (names::LEASE_RENEWALS, Some(("outcome", "failed"))),
        Event::Acknowledged => (names::VERDICTS, Some(("verdict", "ack"))),
        Event::Retried => (names::VERDICTS, Some(("verdict", "retry"))),
        Event::DeadLettered => (names::VERDICTS, Some(("verdict", "dead_letter"))),
        Event::Unkeyed => (names::UNKEYED, None),
        Event::ObservedReplayed => (names::OBSERVED, Some(("answer", "replayed"))),
        Event::ObservedInProgress => (names::OBSERVED, Some(("answer", "in_progress"))),
        Event::ObservedMismatch => (names::OBSERVED, Some(("answer", "mismatch"))),
        Event::ObservedHeld => (names::OBSERVED, Some(("answer", "held"))),
    }
}
