//! Connections lent to leased work. pgonce sees how long the work has them, not what it sends.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::leased::lease::Lease;
use crate::protocol::procedure::ANSWER_MAX;

#[derive(Clone)]
pub(crate) struct Loans {
    since: Arc<Mutex<Since>>,
    silent_for: Duration,
}

#[derive(Default)]
struct Since {
    next_number: u64,
    loans: HashMap<u64, Instant>,
}

/// A connection on loan, until dropped.
pub(crate) struct Loan {
    loans: Loans,
    number: u64,
}

impl Loans {
    pub(crate) fn new(lease: Lease) -> Self {
        Self { since: Arc::default(), silent_for: lease.silent_for }
    }

    pub(crate) fn lend(&self) -> Loan {
        let mut since = self.since();
        let number = since.next_number;
        since.next_number += 1;
        since.loans.insert(number, Instant::now());
        drop(since);
        Loan { loans: self.clone(), number }
    }

    /// Whether a loan lasts longer than it may.
    pub(crate) fn are_silent(&self) -> bool {
        self.since().loans.values().any(|since| since.elapsed() > self.silent_for)
    }

    /// How long a pgonce call for the claim may take.
    pub(crate) fn answer_within(&self) -> Duration {
        self.silent_for.min(ANSWER_MAX)
    }

    fn since(&self) -> MutexGuard<'_, Since> {
        self.since.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Loan {
    /// The work asked for the connection again, so its earlier statements were answered.
    pub(crate) fn renew(&self) {
        self.loans.since().loans.insert(self.number, Instant::now());
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        self.loans.since().loans.remove(&self.number);
    }
}
