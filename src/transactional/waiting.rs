//! Waiting for others at work on the same key: `run`, `run_leased` and routes alike.
//!
//! Every call looks for itself first. Of those that then have to wait for one key, through clones of one `PgOnce` and
//! on one pool, one leads: it waits in the database, if not too many leaders of other keys do, and else looks again and
//! again. The rest wait for the leader, without a connection. When the leader finds the key decided, all look again, and
//! when it gets the key, the next one leads. Should a leader hang, the rest look for themselves from time to time. This
//! is about waiting only: the database says who performs.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::PgPool;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::restarts::jitter;
use crate::answer::InProgress;
use crate::operation::Operation;

/// The longest pause of a leader before it asks for a leased claim again.
const LEADER_PAUSE_MAX: Duration = Duration::from_millis(250);
/// How long a leader waits in the database before it looks again. A server goes on waiting for a client that has gone.
const IN_DATABASE_MAX: Duration = Duration::from_secs(1);
const BOUND_MAX: Duration = Duration::from_secs(86_400);
/// The pauses of the rest, from the first to the longest.
const LOOK_AFTER: Duration = Duration::from_millis(100);
const LOOK_AFTER_MAX: Duration = Duration::from_secs(1);

/// The lines of callers, one for each key that is waited for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lines(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    hasher: RandomState,
    lines: Mutex<HashMap<u64, Line>>,
    /// How many leaders wait in the database.
    in_database: AtomicU32,
}

/// One permit, of the leader. Closed when the key is decided.
type Line = Arc<Semaphore>;

/// The wait of one call.
#[derive(Debug)]
pub(crate) struct Waiting {
    lines: Lines,
    /// A key in a database. Should two have the same one, a call waits for the wrong leader and looks again.
    id: u64,
    deadline: Instant,
    pauses: u32,
    /// Whether the key has a live lease: the database has nothing to wait for.
    leased: bool,
    line: Option<Line>,
    lead: Option<Lead>,
    /// Where the number of calls that wait is limited.
    places: Option<Arc<Semaphore>>,
    place: Option<OwnedSemaphorePermit>,
    /// How many leaders may wait in the database: a quarter of the pool's connections.
    in_database_max: u32,
}

#[derive(Debug)]
struct Lead {
    _permit: OwnedSemaphorePermit,
    slot: Option<Slot>,
}

/// A leader that may wait in the database.
#[derive(Debug)]
struct Slot(Lines);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.0.in_database.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Lines {
    pub(crate) fn wait(&self, pool: &PgPool, op: &Operation, bound: Duration) -> Waiting {
        // A pool's options are its own, and stay where they are until they are replaced.
        let options = Arc::as_ptr(&pool.connect_options());
        Waiting {
            lines: self.clone(),
            id: self.0.hasher.hash_one((options, op.scope.as_str(), op.key.as_str())),
            // A bound that is too long is refused before anything waits.
            deadline: Instant::now() + bound.min(BOUND_MAX),
            pauses: 0,
            leased: false,
            line: None,
            lead: None,
            places: None,
            place: None,
            in_database_max: pool.options().get_max_connections() / 4,
        }
    }

    fn slot(&self, max: u32) -> Option<Slot> {
        let more = |count: u32| (count < max).then_some(count + 1);
        let taken = self.0.in_database.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.ok().map(|_| Slot(self.clone()))
    }

    fn locked(&self) -> MutexGuard<'_, HashMap<u64, Line>> {
        self.0.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    /// Waits only while one of these places is free.
    #[cfg(feature = "tower")]
    pub(crate) fn with_places(mut self, places: &Arc<Semaphore>) -> Self {
        self.places = Some(Arc::clone(places));
        self
    }

    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// How long to wait in the database before the next look: zero but for a leader.
    pub(crate) fn in_database(&self) -> Duration {
        let waits = self.lead.as_ref().is_some_and(|lead| lead.slot.is_some()) && !self.leased;
        if waits { self.left().min(IN_DATABASE_MAX) } else { Duration::ZERO }
    }

    pub(crate) fn leads(&self) -> bool {
        self.lead.is_some()
    }

    /// Pauses before another look, and says whether there is to be one: the bound may be over.
    pub(crate) async fn again(&mut self, wait: &InProgress) -> bool {
        let left = self.left();
        if left.is_zero() {
            return false;
        }
        if let Some(places) = self.places.as_ref().filter(|_| self.place.is_none()) {
            let Ok(place) = Arc::clone(places).try_acquire_owned() else { return false };
            self.place = Some(place);
        }
        self.leased = wait.lease_remaining.is_some();
        self.pauses += 1;
        if let Some(lead) = &mut self.lead {
            lead.slot = lead.slot.take().or_else(|| self.lines.slot(self.in_database_max));
            let pause = match &lead.slot {
                // It waits in the database, unless statement_timeout is so short that it cannot.
                Some(_) if !self.leased => Duration::from_millis(5),
                _ => Duration::from_millis(5 << self.pauses.min(8)).min(LEADER_PAUSE_MAX),
            };
            tokio::time::sleep(jitter(pause).min(left)).await;
            return true;
        }
        let pause = (LOOK_AFTER * (1 << (self.pauses - 1).min(8))).min(LOOK_AFTER_MAX);
        let line = self.join();
        if let Ok(Ok(permit)) = tokio::time::timeout(pause.min(left), line.acquire_owned()).await {
            self.lead = Some(Lead { _permit: permit, slot: self.lines.slot(self.in_database_max) });
        }
        true
    }

    /// The call has the key: the next one leads.
    pub(crate) fn leave(&mut self) {
        (self.lead, self.place) = (None, None);
    }

    /// A row decides: all look again.
    pub(crate) fn end(&mut self) {
        if let Some(line) = self.line.take() {
            line.close();
            self.lines.locked().retain(|id, other| *id != self.id || !Arc::ptr_eq(other, &line));
        }
        self.lead = None;
    }

    fn join(&mut self) -> Line {
        if let Some(line) = self.line.take_if(|line| line.is_closed()) {
            drop(line);
        }
        let new = || {
            self.lines
                .locked()
                .entry(self.id)
                .or_insert_with(|| Arc::new(Semaphore::new(1)))
                .clone()
        };
        self.line.get_or_insert_with(new).clone()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.lead = None;
        if let Some(line) = self.line.take() {
            let mut lines = self.lines.locked();
            drop(line); // under the lock: the last of two that drop at once sees that it is the last
            if lines.get(&self.id).is_some_and(|line| Arc::strong_count(line) == 1) {
                lines.remove(&self.id);
            }
        }
    }
}
