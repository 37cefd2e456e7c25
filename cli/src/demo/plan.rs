//! What the clients send, and what goes wrong. The seed decides all of it.

use std::time::Duration;

use fastrand::Rng;

/// The payments and their faults, the same for both halves of the demo.
pub(super) struct Plan {
    pub(super) payments: Vec<Payment>,
    loss: f64,
}

pub(super) struct Payment {
    pub(super) key: String,
    pub(super) account: String,
    /// In hundredths.
    pub(super) amount: i64,
    seed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// The client gets the response.
    Answered,
    /// The server does the work; the response is lost.
    AnswerLost,
    /// The client hangs up: the server drops the request after this many polls, wherever it is.
    HungUp { polls: u32 },
}

/// The faults of one payment, in the order of its requests.
pub(super) struct Faults {
    rng: Rng,
    loss: f64,
}

/// How often a client double-clicks: it repeats a request without waiting for the first response.
const IMPATIENCE: f64 = 0.15;
/// Covers hang-ups from before the first statement to after the COMMIT.
const POLLS_MAX: u32 = 12;
const ACCOUNTS: u32 = 50;

impl Plan {
    pub(super) fn new(seed: u64, loss: f64, payments: u32) -> Self {
        let mut rng = Rng::with_seed(seed);
        let payment = |number| Payment {
            key: format!("order-{number:06}"),
            account: format!("account-{:02}", rng.u32(..ACCOUNTS)),
            amount: rng.i64(100..=50_000),
            seed: rng.u64(..),
        };
        Self { payments: (1..=payments).map(payment).collect(), loss }
    }

    pub(super) fn faults(&self, payment: &Payment) -> Faults {
        Faults { rng: Rng::with_seed(payment.seed), loss: self.loss }
    }
}

impl Faults {
    pub(super) fn fate(&mut self) -> Fate {
        if self.rng.f64() >= self.loss {
            Fate::Answered
        } else if self.rng.bool() {
            Fate::AnswerLost
        } else {
            Fate::HungUp { polls: self.rng.u32(..=POLLS_MAX) }
        }
    }

    pub(super) fn is_impatient(&mut self) -> bool {
        self.rng.f64() < IMPATIENCE
    }

    /// The pause before a retry. Random, so that clients do not all return at once.
    pub(super) fn pause(&mut self) -> Duration {
        Duration::from_millis(self.rng.u64(5..=15))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_decides() {
        let fates = |seed| {
            let plan = Plan::new(seed, 0.4, 20);
            let of = |payment| {
                let mut faults = plan.faults(payment);
                (0..5).map(|_| faults.fate()).collect::<Vec<_>>()
            };
            plan.payments.iter().flat_map(of).collect::<Vec<_>>()
        };
        assert_eq!(fates(7), fates(7));
        assert_ne!(fates(7), fates(8));
        let lost = fates(7).iter().filter(|fate| **fate != Fate::Answered).count();
        assert!((20..60).contains(&lost), "{lost} of 100 lost, wanted about 40");
    }
}
