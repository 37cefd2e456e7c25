//! Keeping the lease of a claim alive while its holder works.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::PgConnectOptions;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::claim::{Claim, ClaimId};
use crate::error::ErrorKind;
use crate::lease::Lease;

/// Connections for heartbeats beside each pool. One is enough but for a moment: a second one beats while
/// the first waits behind somebody's lock.
const CONNECTIONS_MAX: u32 = 2;
/// How long a connection for heartbeats is kept when nothing beats.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// How long a heartbeat may take before it is given up and tried again.
const BEAT_MAX: Duration = Duration::from_secs(5);

/// Connections for heartbeats: a few beside each pool. The work may use its pool up, and wait for more than
/// there is; its leases are pushed all the same.
#[derive(Clone, Default)]
pub(crate) struct Beside(Arc<Mutex<Vec<(PoolOptions, PgPool)>>>);

/// What tells one pool from another.
type PoolOptions = Arc<PgConnectOptions>;

impl Beside {
    fn connection(&self, pool: &PgPool) -> PgPool {
        let options = pool.connect_options();
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A pool's options stay where they are until they are replaced (a new password).
        if let Some((_, beside)) = known.iter().find(|(of, _)| Arc::ptr_eq(of, &options)) {
            return beside.clone();
        }
        // What nobody else knows belongs to a pool that is gone, or to its former options.
        known.retain(|(of, _)| Arc::strong_count(of) > 1);
        // With the pool's own hooks: they may set a role.
        let beside = pool
            .options()
            .clone()
            .max_connections(CONNECTIONS_MAX)
            .min_connections(0)
            .idle_timeout(IDLE_MAX)
            .acquire_timeout(BEAT_MAX)
            .connect_lazy_with((*options).clone());
        known.push((options, beside.clone()));
        beside
    }
}

// By hand: the options hold the password.
impl fmt::Debug for Beside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Beside(..)")
    }
}

/// Pushes a claim's lease every third of it, in a task of its own, until it is dropped.
#[derive(Debug)]
pub(crate) struct Heartbeat {
    lost: oneshot::Receiver<()>,
    task: AbortHandle,
}

impl Heartbeat {
    /// Starts to beat.
    pub(crate) fn start(beside: &Beside, pool: &PgPool, claim: &Claim, lease: Lease) -> Self {
        let (tell, lost) = oneshot::channel();
        let beating = beat(beside.connection(pool), claim.id(), lease, tell);
        Self { lost, task: tokio::spawn(beating).abort_handle() }
    }

    /// Completes when the claim is lost, and never otherwise.
    pub(crate) async fn lost(&mut self) {
        if (&mut self.lost).await.is_err() {
            std::future::pending().await // it beats no longer, but nobody has taken the claim
        }
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn beat(beside: PgPool, id: ClaimId, lease: Lease, lost: oneshot::Sender<()>) {
    let began = Instant::now();
    while began.elapsed() < lease.renewed_for {
        tokio::time::sleep(lease.heartbeat).await;
        let bound = BEAT_MAX.min(lease.length.max(Duration::from_secs(1)));
        match tokio::time::timeout(bound, id.extend(&beside, lease.length)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) if error.kind() == ErrorKind::ClaimLost => {
                let _ = lost.send(()); // nobody listens any more
                return;
            }
            Err(_) => tracing::warn!(key = id.log_hash(), "a lease was not renewed in time"),
            Ok(Err(error)) => {
                tracing::warn!(%error, sqlstate = error.sqlstate(), key = id.log_hash(), "a lease was not renewed");
            }
        }
    }
    tracing::warn!(
        key = id.log_hash(),
        "work has run longer than its lease is renewed; others may take its key over"
    );
}
