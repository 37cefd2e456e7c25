//! What a client tells of its operations, and under which names.

use std::sync::Arc;

use super::{Counts, History};
use crate::client::PgOnce;
use crate::error::Result;
use crate::operation::Operation;
use crate::operation::class::{Class, checked};
use crate::operation::key::{Key, Scope};

impl PgOnce {
    /// The [class](Class) of operations that name none.
    ///
    /// ```
    /// use pgonce::{Class, PgOnce};
    /// let once = PgOnce::new().class(Class::new("payments")?);
    /// # Ok::<(), pgonce::Error>(())
    /// ```
    #[must_use]
    pub fn class(mut self, class: Class) -> Self {
        self.class = class;
        self
    }

    /// Names the unit of [`Operation::value`], such as `cents`: a label of the metric
    /// [`DUPLICATES_VALUE`](crate::metrics::DUPLICATES_VALUE), which is not counted without it.
    ///
    /// ```
    /// let once = pgonce::PgOnce::new().value_unit("cents")?;
    /// # Ok::<(), pgonce::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) when it is empty, over 100 bytes or contains a control
    /// character.
    pub fn value_unit(mut self, unit: impl AsRef<str>) -> Result<Self> {
        self.telemetry =
            Arc::new(self.telemetry.with_value_unit(checked("value unit", unit.as_ref())?));
        Ok(self)
    }

    /// Counts what callers are answered in this [`History`], too.
    ///
    /// ```
    /// use pgonce::{History, PgOnce};
    /// let history = History::new(std::time::Duration::from_secs(30 * 86_400))?;
    /// let once = PgOnce::new().keep_history(&history);
    /// # Ok::<(), pgonce::Error>(())
    /// ```
    #[must_use]
    pub fn keep_history(mut self, history: &History) -> Self {
        self.telemetry = Arc::new(self.telemetry.with_history(history));
        self
    }

    /// The secret under which scope and key are hashed for logs and spans. With the same secret the hash is the same in
    /// every process, and `pgonce hash SCOPE KEY` prints it. Without one the hashes are keyed at random in each process.
    ///
    /// ```
    /// use pgonce::{Key, PgOnce, Scope};
    /// let (scope, key) = (Scope::new("acme/payments.create")?, Key::new("order-17")?);
    /// let [one, other] = [0, 1].map(|_| PgOnce::new().log_secret("at least sixteen bytes"));
    /// assert_eq!(one?.log_hash(&scope, &key), other?.log_hash(&scope, &key));
    /// # Ok::<(), pgonce::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) when it is shorter than 16 bytes.
    pub fn log_secret(mut self, secret: impl AsRef<[u8]>) -> Result<Self> {
        self.telemetry = Arc::new(self.telemetry.with_secret(secret.as_ref())?);
        Ok(self)
    }

    /// What stands for this key in pgonce's log lines and spans, as the field `key`: 16 hexadecimal digits. They tell
    /// keys apart and do not show them.
    ///
    /// ```
    /// use pgonce::{Key, PgOnce, Scope};
    /// let once = PgOnce::new();
    /// let (scope, key) = (Scope::new("acme/payments.create")?, Key::new("order-17")?);
    /// tracing::info!(key = once.log_hash(&scope, &key), "paid");
    /// # Ok::<(), pgonce::Error>(())
    /// ```
    #[must_use]
    pub fn log_hash(&self, scope: &Scope, key: &Key) -> String {
        self.telemetry.hash(scope.as_str(), key.as_str())
    }

    pub(crate) fn counts(&self, op: &Operation) -> Arc<Counts> {
        self.telemetry.of(op.class.as_ref().unwrap_or(&self.class))
    }
}
