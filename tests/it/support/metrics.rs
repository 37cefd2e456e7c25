//! What pgonce's counters say in a test.

use std::collections::HashMap;
use std::sync::Mutex;

use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use pgonce::web::Answer;

/// The metrics of this thread, from now on: make it before the client's first call.
pub struct Metrics {
    snapshotter: Snapshotter,
    /// A snapshot takes what it shows.
    counted: Mutex<HashMap<String, u64>>,
    _guard: metrics::LocalRecorderGuard<'static>,
}

impl Metrics {
    pub fn of_thread() -> Self {
        // Leaked, because the guard borrows it: one for each test.
        let recorder: &'static DebuggingRecorder = Box::leak(Box::default());
        Self {
            snapshotter: recorder.snapshotter(),
            counted: Mutex::default(),
            _guard: metrics::set_default_local_recorder(recorder),
        }
    }

    /// The counters that are not zero, as `name{label=value,label=value}` with sorted labels; of histograms, how many
    /// values.
    pub fn all(&self) -> HashMap<String, u64> {
        let mut counted = self.counted.lock().unwrap();
        for (key, _, _, value) in self.snapshotter.snapshot().into_vec() {
            let mut labels: Vec<_> = key
                .key()
                .labels()
                .map(|label| format!("{}={}", label.key(), label.value()))
                .collect();
            labels.sort();
            let name = format!("{}{{{}}}", key.key().name(), labels.join(","));
            let count = counted.entry(name).or_default();
            match value {
                DebugValue::Counter(value) => *count += value,
                DebugValue::Gauge(value) if value.into_inner() == 0.0 => {} // taken before
                DebugValue::Gauge(value) => *count = value.into_inner() as u64,
                DebugValue::Histogram(values) => *count += values.len() as u64,
            }
        }
        counted
            .iter()
            .filter(|(_, count)| **count > 0)
            .map(|(name, count)| (name.clone(), *count))
            .collect()
    }

    pub fn get(&self, name: &str) -> u64 {
        self.all().get(name).copied().unwrap_or_default()
    }

    /// Counters of the HTTP layer by answer, over all classes.
    pub fn by_answer(&self, metric: &str) -> HashMap<String, u64> {
        let mut counts = HashMap::new();
        for (name, count) in self.all() {
            let Some(labels) = name.strip_prefix(&format!("{metric}{{answer=")) else { continue };
            let answer = labels.split(',').next().unwrap().to_owned();
            *counts.entry(answer).or_default() += count;
        }
        counts
    }

    pub fn answered(&self, answer: Answer) -> u64 {
        self.by_answer("pgonce.http.answers").get(answer.code()).copied().unwrap_or_default()
    }

    pub fn observed(&self, answer: Answer) -> u64 {
        self.by_answer("pgonce.http.observed").get(answer.code()).copied().unwrap_or_default()
    }
}
