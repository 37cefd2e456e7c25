//! Renews the leases of claims while their holders work.

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
use crate::telemetry::Event;

/// Heartbeat connections beside each pool. The second one is used if the first gives no answer.
const CONNECTIONS_MAX: u32 = 2;
/// How long an idle heartbeat connection is kept.
const IDLE_MAX: Duration = Duration::from_secs(60);
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// How many claims one call extends. The database takes 10,000, but the call keeps its rows locked, and a holder that
/// records a step waits for it.
const CLAIMS_MAX: usize = 1000;
const RENEWED_FOR_DEFAULT: Duration = Duration::from_secs(24 * 3600);

/// One heartbeat task per pool, with its own few connections: leases are renewed even if the work exhausts the pool.
#[derive(Clone, Default)]
pub(crate) struct Beside(Arc<Mutex<Known>>);

type Known = Vec<(PoolOptions, Arc<Beats>)>;
/// Identifies a pool.
type PoolOptions = Arc<PgConnectOptions>;

impl Beside {
    fn beats(&self, pool: &PgPool) -> Arc<Beats> {
        let options = pool.connect_options();
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A pool's options stay the same object until replaced (a new password).
        if let Some((_, beats)) = known.iter().find(|(of, _)| Arc::ptr_eq(of, &options)) {
            return Arc::clone(beats);
        }
        // Options without another owner belong to a pool that is gone, or were replaced.
        known.retain(|(of, _)| Arc::strong_count(of) > 1);
        // With the pool's hooks, which may set a role. No ping: a beat over a dead connection is sent again.
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

// By hand: the options contain the password.
impl fmt::Debug for Beside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Beside(..)")
    }
}

/// Renews a claim's lease until dropped.
///
/// A beat under way may arrive after the drop. It cannot revive a claim that was completed, failed, released or given
/// up by [`lapse`](ClaimId::lapse), whichever comes first: each of these makes the token invalid.
pub(crate) struct Heartbeat {
    beats: Arc<Beats>,
    number: u64,
    stopped: oneshot::Receiver<Stopped>,
    pub(crate) loans: Loans,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stopped {
    /// The claim is no longer this holder's.
    Lost,
    /// A connection lent to the work gives no answer.
    Silent,
}

impl Heartbeat {
    pub(crate) fn start(beside: &Beside, pool: &PgPool, claim: &Claim, lease: Lease) -> Self {
        let beats = beside.beats(pool);
        let (tell, stopped) = oneshot::channel();
        let loans = Loans::new(lease);
        let number = beats.register(claim.id(), lease, loans.clone(), tell);
        Self { beats, number, stopped, loans }
    }

    /// Completes only when the work must stop.
    pub(crate) async fn stopped(&mut self) -> Stopped {
        match (&mut self.stopped).await {
            Ok(stopped) => stopped,
            // The lease is not renewed any more, but no takeover is known: the work goes on.
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

/// The claims whose leases are renewed beside one pool.
struct Beats {
    pool: PgPool,
    /// Wakes the task early.
    wake: Notify,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    claims: HashMap<u64, HeldClaim>,
    next_number: u64,
    /// The heartbeat task. Ends when there are no claims, or with its runtime.
    task: Option<AbortHandle>,
}

struct HeldClaim {
    id: ClaimId,
    lease: Lease,
    /// None: a beat is under way.
    due: Option<Instant>,
    /// When renewal ends.
    ends: Option<Instant>,
    loans: Loans,
    /// None: already used.
    tell: Option<oneshot::Sender<Stopped>>,
}

impl HeldClaim {
    /// Tells the holder, if still there.
    fn stop(&mut self, why: Stopped) {
        let _ = self.tell.take().map(|tell| tell.send(why));
    }

    /// A quarter of the heartbeat interval: how much earlier a beat may go out with others, and when a failed beat is
    /// repeated.
    fn soon(&self) -> Duration {
        self.lease.heartbeat / 4
    }
}

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

    /// When to look next. None: no claims; the task ends.
    fn next(&self) -> Option<Instant> {
        let mut held = self.held();
        if held.claims.is_empty() {
            held.task = None;
            return None;
        }
        Some(held.next_due().unwrap_or_else(|| Instant::now() + IDLE_MAX))
    }

    /// The claims that are due or will be soon, split into calls.
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
                // The call used up the time without an answer: beat again at once, over another connection.
                error.lost_answer().then_some(now)
            }
        };
        let answers = answers.unwrap_or_default();
        let mut held = self.held();
        for (at, due) in due.iter().enumerate() {
            let Some(claim) = held.claims.get_mut(&due.number) else { continue }; // its work has ended
            let answer = answers.get(at);
            claim.id.count(match answer {
                Some(Extended::Pushed) => Event::LeaseRenewed,
                _ => Event::LeaseNotRenewed,
            });
            match answer {
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
    /// Whether to go on renewing the lease.
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

/// How long a call may take. Before the lease ends there is time for two calls without an answer, and a third call.
fn answer_within(lease: Lease) -> Duration {
    let spare = (lease.length - lease.heartbeat) / 3;
    spare.clamp(Duration::from_millis(200), CONNECT_MAX)
}

/// Beats until there are no claims.
async fn beat(beats: Arc<Beats>) {
    while let Some(next) = beats.next() {
        let _ = timeout_at(next, beats.wake.notified()).await; // look in both cases
        for due in beats.take_due() {
            // In its own task: a call without an answer delays no other.
            tokio::spawn(Arc::clone(&beats).extend(due));
        }
    }
}
