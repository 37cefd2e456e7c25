//! Waiting for another call on the same key, in `run`, `run_leased` and routes.
//!
//! 1. Every call first looks for itself. If it has to wait, it joins the line of its request: the same scope, key and
//!    fingerprint, on the same pool, through clones of one `PgOnce`.
//! 2. One call of a line leads. It waits in the database, or looks again and again if too many leaders wait there. The
//!    rest wait for the leader, without a connection.
//! 3. The leader finds a replay: the rest take it, except calls that must lock the row (`lock_replay`). It finds
//!    another answer: the rest look again. It gets the key: the next call leads.
//! 4. The leader hangs: the rest look for themselves from time to time.
//!
//! This is only about waiting: the database decides who performs.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::PgConnectOptions;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::restarts::jitter;
use crate::operation::Operation;
use crate::operation::fingerprint::Fingerprint;
use crate::operation::key::Key;
use crate::operation::scope::Scope;
use crate::protocol::answer::{Begin, InProgress, Replay};
use crate::telemetry::Counts;

/// The longest pause of a leader that does not wait in the database.
const LEADER_PAUSE_MAX: Duration = Duration::from_millis(250);
/// How long a leader waits in the database before it looks again. A server goes on waiting for a client that is gone.
const IN_DATABASE_MAX: Duration = Duration::from_secs(1);
const BOUND_MAX: Duration = Duration::from_secs(86_400);
/// The pauses of the rest, first and longest.
const LOOK_AFTER: Duration = Duration::from_millis(100);
const LOOK_AFTER_MAX: Duration = Duration::from_secs(1);

/// One line of calls for each request that calls wait for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lines(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    lines: Mutex<HashMap<Request, Arc<Line>>>,
    /// How many leaders wait in the database.
    in_database: AtomicU32,
}

/// Calls with an equal request may share an answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Request {
    /// The address of the pool's options: the same until they are replaced. The line keeps them, so no other pool gets
    /// this address.
    pool: usize,
    scope: Scope,
    key: Key,
    fingerprint: Option<Fingerprint>,
}

#[derive(Debug)]
struct Line {
    request: Request,
    _options: Arc<PgConnectOptions>,
    /// One permit, for the leader. Closed when the key is decided.
    lead: Arc<Semaphore>,
    /// What the leader found, set before `lead` is closed.
    replay: OnceLock<Replay>,
}

/// What a call does after *in progress*.
#[derive(Debug)]
pub(crate) enum Next {
    Look,
    /// Another call of this process found this.
    Replay(Replay),
    /// The wait is over, or no place is free.
    GiveUp,
}

/// The wait of one call.
#[derive(Debug)]
pub(crate) struct Waiting {
    lines: Lines,
    options: Arc<PgConnectOptions>,
    deadline: Instant,
    pauses: u32,
    /// Whether the key has a live lease: there is nothing to wait for in the database.
    leased: bool,
    line: Option<Arc<Line>>,
    lead: Option<Lead>,
    /// Limits how many calls wait.
    places: Option<Arc<Semaphore>>,
    place: Option<OwnedSemaphorePermit>,
    /// How many leaders may wait in the database: a quarter of the pool's connections.
    in_database_max: u32,
    counts: Arc<Counts>,
    /// When the wait began.
    since: Option<Instant>,
}

#[derive(Debug)]
struct Lead {
    _permit: OwnedSemaphorePermit,
    slot: Option<Slot>,
}

/// A leader's right to wait in the database.
#[derive(Debug)]
struct Slot(Lines);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.0.in_database.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Lines {
    pub(crate) fn wait(&self, pool: &PgPool, bound: Duration, counts: Arc<Counts>) -> Waiting {
        Waiting {
            counts,
            since: None,
            lines: self.clone(),
            options: pool.connect_options(),
            // Longer waits were refused before.
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

    fn locked(&self) -> MutexGuard<'_, HashMap<Request, Arc<Line>>> {
        self.0.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line {
    /// Takes the line out of the map: later calls start another one.
    fn leave(&self, lines: &mut HashMap<Request, Arc<Self>>) {
        if lines.get(&self.request).is_some_and(|line| std::ptr::eq(&**line, self)) {
            lines.remove(&self.request);
        }
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

    /// How long to wait in the database before the next look: zero, except for a leader.
    pub(crate) fn in_database(&self) -> Duration {
        let waits = self.lead.as_ref().is_some_and(|lead| lead.slot.is_some()) && !self.leased;
        if waits { self.left().min(IN_DATABASE_MAX) } else { Duration::ZERO }
    }

    pub(crate) fn leads(&self) -> bool {
        self.lead.is_some()
    }

    /// Pauses before another look.
    pub(crate) async fn again(&mut self, op: &Operation, wait: &InProgress) -> Next {
        let left = self.left();
        if left.is_zero() {
            return Next::GiveUp;
        }
        if let Some(places) = self.places.as_ref().filter(|_| self.place.is_none()) {
            let Ok(place) = Arc::clone(places).try_acquire_owned() else { return Next::GiveUp };
            self.place = Some(place);
        }
        self.since.get_or_insert_with(Instant::now);
        self.leased = wait.lease_remaining.is_some();
        self.pauses += 1;
        if let Some(lead) = &mut self.lead {
            lead.slot = lead.slot.take().or_else(|| self.lines.slot(self.in_database_max));
            let pause = match &lead.slot {
                // The database does the waiting, unless statement_timeout is too short for that.
                Some(_) if !self.leased => Duration::from_millis(5),
                _ => Duration::from_millis(5 << self.pauses.min(8)).min(LEADER_PAUSE_MAX),
            };
            tokio::time::sleep(jitter(pause).min(left)).await;
            return Next::Look;
        }
        let pause = (LOOK_AFTER * (1 << (self.pauses - 1).min(8))).min(LOOK_AFTER_MAX);
        let line = self.join(op);
        let lead = Arc::clone(&line.lead).acquire_owned();
        match tokio::time::timeout(pause.min(left), lead).await {
            Ok(Ok(permit)) => {
                let slot = self.lines.slot(self.in_database_max);
                self.lead = Some(Lead { _permit: permit, slot });
            }
            Ok(Err(_closed)) if !op.lock_replay => {
                if let Some(replay) = line.replay.get() {
                    return Next::Replay(replay.clone());
                }
            }
            Ok(Err(_)) | Err(_) => {}
        }
        Next::Look
    }

    /// The call has the key: the next call leads.
    pub(crate) fn leave(&mut self) {
        (self.lead, self.place) = (None, None);
        self.is_over();
    }

    fn is_over(&mut self) {
        if let Some(since) = self.since.take() {
            self.counts.waited(since.elapsed());
        }
    }

    /// A row decides. The waiting calls get its replay, or look again.
    pub(crate) fn end(&mut self, answer: Option<&Begin>) {
        if let Some(line) = self.line.take() {
            if let Some(Begin::Replay(replay)) = answer {
                line.replay.set(replay.clone()).ok(); // the first one stands
            }
            line.lead.close();
            line.leave(&mut self.lines.locked());
        }
        self.lead = None;
        self.is_over();
    }

    fn join(&mut self, op: &Operation) -> Arc<Line> {
        if self.line.as_ref().is_some_and(|line| line.lead.is_closed()) {
            self.line = None;
        }
        let new = || {
            let request = Request {
                pool: Arc::as_ptr(&self.options).addr(),
                scope: op.scope.clone(),
                key: op.key.clone(),
                fingerprint: op.fingerprint,
            };
            let mut lines = self.lines.locked();
            let line = lines.entry(request.clone()).or_insert_with(|| {
                Arc::new(Line {
                    request,
                    _options: Arc::clone(&self.options),
                    lead: Arc::new(Semaphore::new(1)),
                    replay: OnceLock::new(),
                })
            });
            Arc::clone(line)
        };
        self.line.get_or_insert_with(new).clone()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.lead = None;
        self.is_over();
        if let Some(line) = self.line.take() {
            let mut lines = self.lines.locked();
            // Owned by the map and this call only? Checked under the lock: of two calls that drop at once, the second
            // sees that it is the last.
            if Arc::strong_count(&line) <= 2 {
                line.leave(&mut lines);
            }
            drop(line);
        }
    }
}
