//! Waiting for another request with the same key, without holding a connection.

use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::layer::Idempotency;

/// The longest pause between two looks at a key.
const PAUSE_MAX: Duration = Duration::from_millis(250);

/// A request's wait: bounded in time by the route, and in number together with the others'.
pub(crate) struct Waiting<'a> {
    config: &'a Idempotency,
    deadline: Instant,
    looks: u32,
    /// Held while this request waits.
    place: Option<OwnedSemaphorePermit>,
}

impl<'a> Waiting<'a> {
    pub(crate) fn new(config: &'a Idempotency) -> Self {
        let bound = config.wait.min(Duration::from_secs(86_400));
        Self { config, deadline: Instant::now() + bound, looks: 0, place: None }
    }

    /// Pauses before another look. `false`: the time is up, or too many wait already; answer now.
    pub(crate) async fn pause(&mut self) -> bool {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || self.config.observe {
            return false;
        }
        if self.place.is_none() {
            self.place = self.config.waiters.clone().try_acquire_owned().ok();
        }
        if self.place.is_none() {
            return false;
        }
        self.looks += 1;
        let pause = PAUSE_MAX.min(Duration::from_millis(5 << self.looks.min(8)));
        // Half to all of it, so that those who wait for one key do not look at once.
        let pause = pause.mul_f64(0.5 + fastrand::f64() / 2.0).min(left);
        tokio::time::sleep(pause).await;
        true
    }
}
