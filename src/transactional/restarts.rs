//! Starts again after a serialization failure or a deadlock.

use std::error::Error as StdError;
use std::time::Duration;

use crate::error::sqlstate_in;

/// How often a transaction starts, the first start included.
const STARTS_MAX: u32 = 20;

#[derive(Debug, Default)]
pub(crate) struct Restarts(u32);

impl Restarts {
    /// Pauses before the next start. False: no more starts.
    pub(crate) async fn pause(&mut self) -> bool {
        self.0 += 1;
        if self.0 >= STARTS_MAX {
            return false;
        }
        tokio::time::sleep(jitter(Duration::from_millis(2 << self.0.min(7)))).await;
        true
    }
}

/// Whether this is a serialization failure or deadlock: 40001 or 40P01, from a statement of pgonce or of the work.
pub(crate) fn is_contention(error: &(dyn StdError + 'static)) -> bool {
    matches!(sqlstate_in(error), Some("40001" | "40P01"))
}

/// Half to all of `pause`, at random, so that calls that collided do not collide again.
pub(crate) fn jitter(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + fastrand::f64() / 2.0)
}
