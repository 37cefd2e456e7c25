//! Starting again after a serialization failure or a deadlock.

use std::error::Error as StdError;
use std::time::Duration;

use crate::error::sqlstate_in;

/// How often a transaction starts, the first time included.
const STARTS_MAX: u32 = 20;

/// The restarts of one call.
#[derive(Debug, Default)]
pub(crate) struct Restarts(u32);

impl Restarts {
    /// Pauses before the next start, and says whether there is to be one.
    pub(crate) async fn pause(&mut self) -> bool {
        self.0 += 1;
        if self.0 >= STARTS_MAX {
            return false;
        }
        tokio::time::sleep(jitter(Duration::from_millis(2 << self.0.min(7)))).await;
        true
    }
}

/// Whether the database gave up a transaction for another one: 40001 or 40P01, in our statements or the work's.
pub(crate) fn is_contention(error: &(dyn StdError + 'static)) -> bool {
    matches!(sqlstate_in(error), Some("40001" | "40P01"))
}

/// Half to all of `pause`, so that those that lost together do not meet again.
pub(crate) fn jitter(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + fastrand::f64() / 2.0)
}
