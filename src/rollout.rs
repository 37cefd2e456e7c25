//! Switching protection on in steps, without a deployment.

use std::collections::HashMap;
use std::fmt;
use std::pin::pin;
use std::str::FromStr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use serde::{Serialize, Serializer};
use sqlx::{PgConnection, PgPool};

use crate::client::PgOnce;
use crate::error::{Error, ErrorKind, Result};
use crate::leased::before::before;
use crate::operation::class::Class;
use crate::operation::limits::check_pause;
use crate::transactional::OwnedTransaction;

/// How far a class's protection is switched on: a route's, or that of operations given to [`run`](PgOnce::run).
///
/// ```
/// use pgonce::RolloutMode;
/// assert_eq!("observe".parse::<RolloutMode>()?, RolloutMode::Observe);
/// assert_eq!(RolloutMode::Observe.as_str(), "observe");
/// # Ok::<(), pgonce::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RolloutMode {
    /// Keys are ignored: the work runs, in a transaction without a key.
    Off,
    /// The work always runs. A new key is recorded with it; what protection would have done is counted.
    Observe,
    /// Keys are honored. A request without a key runs unprotected.
    Optional,
    /// Keys are honored, and a request without a key is refused. `run` always has a key.
    Required,
}

impl RolloutMode {
    pub(crate) const ALL: [Self; 4] = [Self::Off, Self::Observe, Self::Optional, Self::Required];

    /// The mode's name: `off`, `observe`, `optional` or `required`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Observe => "observe",
            Self::Optional => "optional",
            Self::Required => "required",
        }
    }
}

impl FromStr for RolloutMode {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let mode = Self::ALL.into_iter().find(|mode| mode.as_str() == name);
        mode.ok_or_else(|| Error::invalid("mode takes off, observe, optional or required"))
    }
}

impl fmt::Display for RolloutMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for RolloutMode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// Reads the rollout modes of the classes from the database every few seconds, and keeps them. No call asks the database
/// for its mode.
///
/// A class without a mode in the database does what the code says ([`Operation::mode`](crate::Operation::mode),
/// [`IdempotencyLayer`](crate::web::IdempotencyLayer)). While the database cannot be asked, the modes that were last read
/// hold. Two processes may differ for as long as a read's interval: by default up to six seconds. Cheap to clone; clones
/// share what was read.
///
/// ```no_run
/// use pgonce::{PgOnce, Rollout};
/// # async fn example(pool: sqlx::PgPool) -> Result<(), Box<dyn std::error::Error>> {
/// let rollout = Rollout::new();
/// let once = PgOnce::new().rollout(&rollout);
/// rollout.read(&once, &mut *pool.acquire().await?).await?; // before the first call
/// let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
/// let task = tokio::spawn({
///     let (once, pool) = (once.clone(), pool.clone());
///     async move { rollout.run_until(&once, pool, stopped).await }
/// });
/// // at shutdown
/// drop(stop);
/// task.await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Rollout {
    interval: Duration,
    modes: Arc<RwLock<HashMap<String, RolloutMode>>>,
}

const INTERVAL_DEFAULT: Duration = Duration::from_secs(5);
const READ_TIMEOUT: Duration = Duration::from_secs(10);

impl Default for Rollout {
    fn default() -> Self {
        Self::new()
    }
}

impl Rollout {
    /// Nothing is read yet: every class does what its code says. Reads every five seconds.
    #[must_use]
    pub fn new() -> Self {
        Self { interval: INTERVAL_DEFAULT, modes: Arc::default() }
    }

    /// The time between two reads: 1 ms to one day. It varies by up to a tenth.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) outside these limits.
    pub fn interval(mut self, interval: Duration) -> Result<Self> {
        check_pause("interval", interval)?;
        self.interval = interval;
        Ok(self)
    }

    /// Reads the modes now. Only reads. Needs the right to read `rollout`.
    ///
    /// # Errors
    /// Errors of the database; the modes that were read before stay.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn read(&self, once: &PgOnce, conn: &mut PgConnection) -> Result<()> {
        let read = once.rollout_modes(conn).await?;
        let modes = read.into_iter().filter_map(|class| Some((class.class, class.mode?)));
        let modes: HashMap<_, _> = modes.collect();
        let mut kept = self.modes.write().unwrap_or_else(PoisonError::into_inner);
        if *kept != modes {
            tracing::info!(modes = ?modes, "rollout modes have changed");
            *kept = modes;
        }
        Ok(())
    }

    /// Reads the modes again and again until `shutdown` completes. Takes one connection per read and gives it back. Logs
    /// errors, and a change of the modes.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn run_until(&self, once: &PgOnce, pool: PgPool, shutdown: impl Future) {
        let mut shutdown = pin!(shutdown);
        loop {
            let Some(read) = before(&mut shutdown, self.read_from(once, &pool)).await else {
                return;
            };
            if let Err(error) = read {
                tracing::warn!(kind = ?error.kind(), sqlstate = error.sqlstate(), "the rollout modes were not read");
            }
            let pause = self.interval.mul_f64(0.9 + fastrand::f64() / 5.0);
            if before(&mut shutdown, tokio::time::sleep(pause)).await.is_none() {
                return;
            }
        }
    }

    async fn read_from(&self, once: &PgOnce, pool: &PgPool) -> Result<()> {
        // If dropped half way, the connection is closed: the pool would wait for its answer without a bound.
        let read = async {
            let mut tx = OwnedTransaction::begin(pool).await?;
            let read = self.read(once, &mut tx).await;
            tx.unless_failed(read).await?.0.leave();
            Ok(())
        };
        let silent = |_| Error::new(ErrorKind::Connection, "the database gave no answer in time");
        tokio::time::timeout(READ_TIMEOUT, read).await.map_err(silent)?
    }

    /// The class's mode in the database, as last read.
    #[must_use]
    pub fn mode(&self, class: &Class) -> Option<RolloutMode> {
        self.modes.read().unwrap_or_else(PoisonError::into_inner).get(class.as_str()).copied()
    }
}
