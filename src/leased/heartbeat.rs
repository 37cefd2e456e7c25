//! Keeping the leases of claims alive while their holders work.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::PgConnectOptions;
use tokio::sync::{Notify, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};

use crate::leased::lease::Lease;
use crate::leased::loans::Loans;
use crate::protocol::claim::{Claim, ClaimId, Extended};

/// Connections for heartbeats beside each pool. One is enough until it gives no answer: the second one beats then.
const CONNECTIONS_MAX: u32 = 2;
/// How long a connection for heartbeats is kept when nothing beats.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// How long a connection is waited for.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// How many claims one call extends. The database takes 10,000; but a call keeps the rows locked that it has
/// extended, and their holders wait for it when they record a step.
const CLAIMS_MAX: usize = 1000;
const RENEWED_FOR_DEFAULT: Duration = Duration::from_secs(24 * 3600);

/// One beating task beside each pool, with a few connections of its own. The work may use its pool up, and wait for
/// more than there is; its leases are pushed all the same.
#[derive(Clone, Default)]
pub(crate) struct Beside(Arc<Mutex<Known>>);

type Known = Vec<(PoolOptions, Arc<Beats>)>;
/// What tells one pool from another.
type PoolOptions = Arc<PgConnectOptions>;

impl Beside {
    fn beats(&self, pool: &PgPool) -> Arc<Beats> {
        let options = pool.connect_options();
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A pool's options stay where they are until they are replaced (a new password).
        if let Some((_, beats)) = known.iter().find(|(of, _)| Arc::ptr_eq(of, &options)) {
            return Arc::clone(beats);
        }
        // Options that are known here only belong to a pool that is gone, or are its former ones.
        known.retain(|(of, _)| Arc::strong_count(of) > 1);
        // With the pool's own hooks: they may set a role. A beat over a dead connection is sent again, so that none
        // needs a ping before it.
        let beside = pool
            .options()
            .clone()
            .max_connections(CONNECTIONS_MAX)
            .min_connections(0)
            .idle_timeout(IDLE_MAX)
            .acquire_timeout(CONNECT_MAX)
            .test_before_acquire(false)
            .connect_lazy_with((*options).clone());
        let beats = Arc::new(Beats { pool: beside, wake: Notify::new(), held: Mutex::default() });
        known.push((options, Arc::clone(&beats)));
        beats
    }
}

// By hand: the options hold the password.
impl fmt::Debug for Beside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Beside(..)")
    }
}

/// Pushes a claim's lease until it is dropped.
///
/// A beat that is on its way then may still arrive. It extends no claim that was completed, failed, released or given
/// up by [`lapse`](ClaimId::lapse), whichever of the two comes first: each of these takes the claim's token out of use.
pub(crate) struct Heartbeat {
    beats: Arc<Beats>,
    number: u64,
    stopped: oneshot::Receiver<Stopped>,
    /// Those of the claim's work.
    pub(crate) loans: Loans,
}

/// Why work is to be stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stopped {
    /// Its claim is another holder's.
    Lost,
    /// A connection that was lent to it gives no answer.
    Silent,
}

impl Heartbeat {
    /// Starts to beat.
    pub(crate) fn start(beside: &Beside, pool: &PgPool, claim: &Claim, lease: Lease) -> Self {
        let beats = beside.beats(pool);
        let (tell, stopped) = oneshot::channel();
        let loans = Loans::new(lease);
        let number = beats.register(claim.id(), lease, loans.clone(), tell);
        Self { beats, number, stopped, loans }
    }

    /// Completes when the work is to be stopped, and never otherwise.
    pub(crate) async fn stopped(&mut self) -> Stopped {
        match (&mut self.stopped).await {
            Ok(stopped) => stopped,
            // It beats no longer, but no other holder is known.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        let mut held = self.beats.held();
        held.claims.remove(&self.number);
        if held.claims.is_empty() {
            self.beats.wake.notify_one(); // the task ends
        }
    }
}

/// The claims whose leases are pushed beside one pool.
struct Beats {
    pool: PgPool,
    /// Tells the task that it must look before the time that it waits for.
    wake: Notify,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    claims: HashMap<u64, HeldClaim>,
    next_number: u64,
    /// The task that beats. It ends when there are no claims, and with its runtime.
    task: Option<AbortHandle>,
}

struct HeldClaim {
    id: ClaimId,
    lease: Lease,
    /// None: a beat is under way.
    due: Option<Instant>,
    /// When it is renewed no longer.
    ends: Option<Instant>,
    loans: Loans,
    /// Gone when it was told.
    tell: Option<oneshot::Sender<Stopped>>,
}

impl HeldClaim {
    /// Tells the holder, if it is still there.
    fn stop(&mut self, why: Stopped) {
        let _ = self.tell.take().map(|tell| tell.send(why));
    }

    /// A part of the time between two beats: how much earlier it may beat together with others, and how soon it beats
    /// again when it could not.
    fn soon(&self) -> Duration {
        self.lease.heartbeat / 4
    }
}

/// A claim to be extended.
struct Due {
    number: u64,
    id: ClaimId,
    lease: Lease,
}

impl Beats {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn register(
        self: &Arc<Self>,
        id: ClaimId,
        lease: Lease,
        loans: Loans,
        tell: oneshot::Sender<Stopped>,
    ) -> u64 {
        let now = Instant::now();
        let mut held = self.held();
        let number = held.next_number;
        held.next_number += 1;
        let due = now + lease.heartbeat;
        let is_first = held.next_due().is_none_or(|next| due < next);
        let ends = now.checked_add(lease.renewed_for.unwrap_or(RENEWED_FOR_DEFAULT));
        held.claims
            .insert(number, HeldClaim { id, lease, due: Some(due), ends, loans, tell: Some(tell) });
        if held.task.as_ref().is_none_or(AbortHandle::is_finished) {
            held.task = Some(tokio::spawn(beat(Arc::clone(self))).abort_handle());
        } else if is_first {
            self.wake.notify_one();
        }
        number
    }

    /// When to look next. None: there are no claims, and the task has ended.
    fn next(&self) -> Option<Instant> {
        let mut held = self.held();
        if held.claims.is_empty() {
            held.task = None;
            return None;
        }
        Some(held.next_due().unwrap_or_else(|| Instant::now() + IDLE_MAX))
    }

    /// The claims that are due, and those that will be soon; in as many parts as there must be calls.
    fn take_due(&self) -> Vec<Vec<Due>> {
        let now = Instant::now();
        let mut held = self.held();
        if held.next_due().is_none_or(|next| next > now) {
            return Vec::new();
        }
        held.claims.retain(|_, claim| claim.is_renewed(now));
        let mut all = Vec::new();
        for (&number, claim) in &mut held.claims {
            if claim.due.is_none_or(|due| due > now + claim.soon()) {
                continue;
            }
            claim.due = None;
            all.push(Due { number, id: claim.id.clone(), lease: claim.lease });
        }
        let mut calls = Vec::new();
        while !all.is_empty() {
            calls.push(all.split_off(all.len().saturating_sub(CLAIMS_MAX)));
        }
        calls
    }

    /// Extends claims with one call.
    async fn extend(self: Arc<Self>, due: Vec<Due>) {
        let sent = Instant::now();
        let within = due.iter().map(|due| answer_within(due.lease)).min().unwrap_or(CONNECT_MAX);
        let claims = due.iter().map(|due| (&due.id, due.lease.length)).collect::<Vec<_>>();
        let answers = ClaimId::extend_all(&self.pool, &claims, within).await;
        let now = Instant::now();
        let again_at = match &answers {
            Ok(_) => None,
            Err(error) => {
                let works = due.len();
                tracing::warn!(%error, sqlstate = error.sqlstate(), works, "leases were not renewed");
                // Without an answer the time is spent: the next beat goes over another connection at once.
                error.lost_answer().then_some(now)
            }
        };
        let answers = answers.unwrap_or_default();
        let mut held = self.held();
        for (at, due) in due.iter().enumerate() {
            let Some(claim) = held.claims.get_mut(&due.number) else { continue }; // it has ended
            match answers.get(at) {
                Some(Extended::Lost) => {
                    claim.stop(Stopped::Lost);
                    held.claims.remove(&due.number);
                }
                Some(Extended::Pushed) => claim.due = Some(sent + claim.lease.heartbeat),
                Some(Extended::Locked) => claim.due = Some(now + claim.soon()),
                None => claim.due = Some(again_at.unwrap_or_else(|| now + claim.soon())),
            }
        }
        drop(held);
        self.wake.notify_one();
    }
}

impl Held {
    fn next_due(&self) -> Option<Instant> {
        self.claims.values().filter_map(|claim| claim.due).min()
    }
}

impl HeldClaim {
    /// Whether the lease is still to be pushed.
    fn is_renewed(&mut self, now: Instant) -> bool {
        if self.loans.are_silent() {
            tracing::warn!(
                key = self.id.log_hash(),
                "a connection that was lent to leased work gives no answer; its lease is not renewed"
            );
            self.stop(Stopped::Silent);
            return false;
        }
        let renewed = self.ends.is_none_or(|ends| now < ends);
        if !renewed {
            tracing::warn!(
                key = self.id.log_hash(),
                "work has run longer than its lease is renewed; others may take its key over"
            );
        }
        renewed
    }
}

/// How long a call may take: between one beat and the end of the lease there is time for two without an answer, and a
/// third.
fn answer_within(lease: Lease) -> Duration {
    let spare = (lease.length - lease.heartbeat) / 3;
    spare.clamp(Duration::from_millis(200), CONNECT_MAX)
}

/// Beats until there are no claims.
async fn beat(beats: Arc<Beats>) {
    while let Some(next) = beats.next() {
        let _ = timeout_at(next, beats.wake.notified()).await; // either way it looks
        for due in beats.take_due() {
            // In a task of its own: a call without an answer holds up no other one.
            tokio::spawn(Arc::clone(&beats).extend(due));
        }
    }
}
