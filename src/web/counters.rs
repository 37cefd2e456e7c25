//! What the layer has done so far, in numbers.

use std::sync::atomic::{AtomicU64, Ordering};

use super::answer::Answer;

const ANSWERS: usize = Answer::ALL.len();

/// Counts of answers since the layer was made, shared by all its clones: for metrics.
///
/// ```no_run
/// # fn example(idempotency: &pgonce::web::IdempotencyLayer) {
/// for (answer, count) in idempotency.counters().all() {
///     println!("idempotency_answers{{answer=\"{}\"}} {count}", answer.code());
/// }
/// # }
/// ```
#[derive(Debug, Default)]
pub struct Counters {
    given: [AtomicU64; ANSWERS],
    observed: [AtomicU64; ANSWERS],
}

impl Counters {
    /// How often this answer was given.
    #[must_use]
    pub fn get(&self, answer: Answer) -> u64 {
        self.given[answer as usize].load(Ordering::Relaxed)
    }

    /// How often this answer would have been given by a stricter policy: on routes that only
    /// [`observe`](super::IdempotencyLayer::observe), or do not
    /// [refuse an unused transaction](super::IdempotencyLayer::refuse_unused_tx).
    #[must_use]
    pub fn observed(&self, answer: Answer) -> u64 {
        self.observed[answer as usize].load(Ordering::Relaxed)
    }

    /// Every answer and how often it was given.
    pub fn all(&self) -> impl Iterator<Item = (Answer, u64)> {
        Answer::ALL.iter().map(|answer| (*answer, self.get(*answer)))
    }

    pub(crate) fn count(&self, answer: Answer) {
        self.given[answer as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn observe(&self, answer: Answer) {
        self.observed[answer as usize].fetch_add(1, Ordering::Relaxed);
    }
}
