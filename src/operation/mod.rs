//! Operations: what shall happen once.

pub(crate) mod class;
pub(crate) mod fingerprint;
pub(crate) mod key;
pub(crate) mod limits;
pub(crate) mod policy;
pub(crate) mod response;
pub(crate) mod scope;

use std::time::Duration;

use crate::error::Result;
use crate::rollout::RolloutMode;

pub use class::Class;
pub use fingerprint::{Fingerprint, FingerprintSecret};
pub use key::Key;
pub use policy::{OnLapse, Policy};
pub use response::Response;
pub use scope::Scope;

/// An effect that must happen once: scope, key, fingerprint and policy.
///
/// ```
/// use std::time::Duration;
/// use pgonce::{Fingerprint, Operation, Policy};
///
/// let op = Operation::new("acme/payments.create", "order-17")?
///     .fingerprint(Fingerprint::of_bytes(b"{\"amount\":100}"))
///     .policy(Policy::new().wait(Duration::from_secs(2))?);
/// # Ok::<(), pgonce::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Operation {
    pub(crate) scope: Scope,
    pub(crate) key: Key,
    pub(crate) fingerprint: Option<Fingerprint>,
    /// None: the client's.
    pub(crate) policy: Option<Policy>,
    pub(crate) lock_replay: bool,
    pub(crate) secret: bool,
    pub(crate) optimistic: bool,
    pub(crate) class: Option<Class>,
    pub(crate) value: u64,
    /// Where keys are only observed: callers are not told its answers.
    pub(crate) observed: bool,
    /// Unless the database has a mode for the class. None: required.
    pub(crate) mode: Option<RolloutMode>,
}

impl Operation {
    /// Names an operation.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) when scope or key break the limits of
    /// [`Key`].
    pub fn new(
        scope: impl TryInto<Scope, Error: Into<crate::Error>>,
        key: impl TryInto<Key, Error: Into<crate::Error>>,
    ) -> Result<Self> {
        Ok(Self {
            scope: scope.try_into().map_err(Into::into)?,
            key: key.try_into().map_err(Into::into)?,
            fingerprint: None,
            policy: None,
            lock_replay: false,
            secret: false,
            optimistic: false,
            class: None,
            value: 0,
            observed: false,
            mode: None,
        })
    }

    /// Binds the key to a request. Without one, any request with this key is taken for the same.
    #[must_use]
    pub fn fingerprint(mut self, fingerprint: Fingerprint) -> Self {
        self.fingerprint = Some(fingerprint);
        self
    }

    /// How long the key is remembered, how long callers wait, and what happens to a lapsed claim: in place of
    /// [the client's](crate::PgOnce::policy) policy.
    #[must_use]
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = Some(policy);
        self
    }

    /// Makes a replay lock its row, so that the commit waits for a synchronous standby: without it
    /// a replay may hand out a response that a failover then forgets. Costs a write per replay.
    #[must_use]
    pub fn lock_replay(mut self) -> Self {
        self.lock_replay = true;
        self
    }

    /// Keeps what `run` returns out of the table: a retry learns that the operation is done
    /// ([`RunError::Omitted`](crate::RunError::Omitted)), not what it returned. The verbs mark the
    /// [`Response`](crate::Response::secret) itself.
    #[must_use]
    pub fn secret(mut self) -> Self {
        self.secret = true;
        self
    }

    /// What this operation is counted under; see [`Class`]. Not part of its identity: the same key under another class
    /// is the same operation.
    ///
    /// ```
    /// # use pgonce::{Class, Operation};
    /// let op = Operation::new("acme/payments.create", "order-17")?.class(Class::new("payments.create")?);
    /// # Ok::<(), pgonce::Error>(())
    /// ```
    #[must_use]
    pub fn class(mut self, class: Class) -> Self {
        self.class = Some(class);
        self
    }

    /// What a second run of this operation would cost, in the unit of [`PgOnce::value_unit`](crate::PgOnce::value_unit):
    /// counted for each duplicate that is prevented.
    ///
    /// ```
    /// # use pgonce::Operation;
    /// let op = Operation::new("acme/payments.create", "order-17")?.value(1999);
    /// # Ok::<(), pgonce::Error>(())
    /// ```
    #[must_use]
    pub fn value(mut self, value: u64) -> Self {
        self.value = value;
        self
    }

    /// How `run` treats the key while the database has no [rollout mode](crate::Rollout) for the operation's class:
    /// [`Required`](RolloutMode::Required) unless this says otherwise. The verbs, leased work and the inbox ignore it.
    ///
    /// ```
    /// # use pgonce::{Operation, RolloutMode};
    /// let op = Operation::new("acme/payments.create", "order-17")?.mode(RolloutMode::Observe);
    /// # Ok::<(), pgonce::Error>(())
    /// ```
    #[must_use]
    pub fn mode(mut self, mode: RolloutMode) -> Self {
        self.mode = Some(mode);
        self
    }

    /// Lets `run` assume that the key is new: it leaves out the look before the work, and the INSERT of the finished
    /// key finds out. One round trip and a quarter of the database's time less for a new key.
    ///
    /// The work then also runs when the key is finished, held, claimed, or bound to another request; its writes are
    /// rolled back before that answer is returned. So it loses where many calls are retries, where several callers
    /// send the same key at once, and where the work is costly or touches rows that others work on: duplicates that
    /// lock shared rows in different orders deadlock and start again. The verbs and leased work ignore it.
    ///
    /// ```
    /// # use pgonce::Operation;
    /// let op = Operation::new("acme/events.record", "event-17")?.optimistic();
    /// # Ok::<(), pgonce::Error>(())
    /// ```
    #[must_use]
    pub fn optimistic(mut self) -> Self {
        self.optimistic = true;
        self
    }

    /// A key for a remote that takes idempotency keys itself: always the same one for this operation
    /// and `name`, in every attempt and every process, and another one for any other. It does not show
    /// scope or key.
    ///
    /// ```
    /// # use pgonce::Operation;
    /// let op = Operation::new("acme/charges.create", "order-17")?;
    /// assert_eq!(op.derived_key("charge"), op.clone().derived_key("charge"));
    /// assert_ne!(op.derived_key("charge"), op.derived_key("refund"));
    /// # Ok::<(), pgonce::Error>(())
    /// ```
    #[must_use]
    pub fn derived_key(&self, name: &str) -> Key {
        Key::derive(["derived key", self.scope.as_str(), self.key.as_str(), name])
    }

    /// The scope.
    #[must_use]
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// The key.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.key
    }
}

/// Milliseconds as SQL takes them, rounded up so that a short bound never becomes none. What does
/// not fit is far above every limit, which the database then reports.
pub(crate) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(i64::MAX)
}

/// A number of attempts as SQL takes it.
pub(crate) fn attempts(attempts: u32) -> i32 {
    i32::try_from(attempts).unwrap_or(i32::MAX)
}
