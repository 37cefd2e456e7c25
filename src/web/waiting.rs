//! Beginning again: after a wait for another request with the same key, which holds no connection, or
//! when the database gave up a begin for another one.

use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::layer::Idempotency;
use crate::answer::Begin;
use crate::error::{ErrorKind, Result};
use crate::run::{jitter, pause_before_look};

/// How often a begin that lost against another transaction (40001, 40P01) is sent, the first included.
const BEGINS_MAX: u32 = 5;

/// A request's wait: bounded in time by the route, and in number together with the others'.
pub(crate) struct Waiting<'a> {
    config: &'a Idempotency,
    deadline: Instant,
    looks: u32,
    begins_lost: u32,
    /// Held while this request waits.
    place: Option<OwnedSemaphorePermit>,
}

impl<'a> Waiting<'a> {
    pub(crate) fn new(config: &'a Idempotency) -> Self {
        let bound = config.wait.min(Duration::from_secs(86_400));
        Self { config, deadline: Instant::now() + bound, looks: 0, begins_lost: 0, place: None }
    }

    /// Whether to begin again after this answer; pauses first. Nothing has run yet.
    pub(crate) async fn again(&mut self, begun: &Result<Begin>) -> bool {
        match begun {
            Ok(Begin::InProgress(_)) => self.pause().await,
            Err(error) if error.kind() == ErrorKind::Contention => {
                self.begins_lost += 1;
                if self.begins_lost == BEGINS_MAX {
                    return false;
                }
                tokio::time::sleep(jitter(Duration::from_millis(2 << self.begins_lost))).await;
                true
            }
            _ => false,
        }
    }

    /// Pauses before another look. `false`: the time is up, or too many wait already; answer now.
    async fn pause(&mut self) -> bool {
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
        tokio::time::sleep(pause_before_look(self.looks).min(left)).await;
        true
    }
}
