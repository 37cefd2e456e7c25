//! Work under a lease: its steps, and what else it may do with its claim.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::{PgConnection, PgPool};

use crate::client::get;
use crate::error::{Error, ErrorKind, Result, database, sqlstate_in};
use crate::leased::loans::Loans;
use crate::operation::Operation;
use crate::operation::fingerprint::Fingerprint;
use crate::operation::key::{Key, checked};
use crate::operation::response::read_back;
use crate::protocol::claim::ClaimId;
use crate::protocol::procedure::{self, answered};
use crate::transactional::Failure;
use crate::transactional::OwnedTransaction;

/// A piece of leased work that is done once per operation: its name, and its input.
///
/// ```
/// use pgonce::Step;
/// let step = Step::new("charge").made_from(&serde_json::json!({"amount": 100}))?;
/// # Ok::<(), pgonce::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Step {
    name: String,
    definition: Option<Fingerprint>,
}

impl Step {
    /// A step with this name: 1 to 255 bytes, like a key. Names are permanent: a record is found by its name, wherever
    /// the step stands, and another name is another step.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), definition: None }
    }

    /// The step's input, recorded with it. A later attempt with another input is refused: the recorded output would not
    /// fit.
    ///
    /// # Errors
    /// As [`Fingerprint::of_json`].
    pub fn made_from<T: Serialize + ?Sized>(mut self, input: &T) -> Result<Self> {
        self.definition = Some(Fingerprint::of_json(input)?);
        Ok(self)
    }
}

impl From<&str> for Step {
    fn from(name: &str) -> Self {
        Self::new(name)
    }
}

/// What [`PgOnce::run_leased`](crate::PgOnce::run_leased) gives to its closure.
pub struct Work {
    pool: PgPool,
    loans: Loans,
    op: Operation,
    id: ClaimId,
    attempt: u32,
    steps: HashMap<String, Recorded>,
    /// Whether the table may have steps that `steps` lacks: from earlier attempts, or one whose record was not
    /// confirmed.
    stale: bool,
    /// The transaction that completes the operation, once the work has asked for it.
    pub(crate) tx: Option<OwnedTransaction>,
}

/// A step as this attempt knows it.
struct Recorded {
    definition: Option<Vec<u8>>,
    output: Vec<u8>,
    /// Whether this attempt has reached the step.
    passed: bool,
}

impl Work {
    pub(crate) fn new(
        pool: &PgPool,
        op: &Operation,
        id: ClaimId,
        attempt: u32,
        loans: &Loans,
    ) -> Self {
        let (pool, op, loans) = (pool.clone(), op.clone(), loans.clone());
        Self { pool, loans, op, id, attempt, steps: HashMap::new(), stale: attempt > 1, tx: None }
    }

    /// How many claims the key has had, this one included.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// A key for a remote; see [`Operation::derived_key`].
    #[must_use]
    pub fn derived_key(&self, name: &str) -> Key {
        self.op.derived_key(name)
    }

    /// Does `work` once per operation and commits its output; later attempts get the recorded output. This attempt, too,
    /// gets the output as it is read back from its JSON.
    ///
    /// A crash before the record repeats `work`. If `work` calls a remote, give the remote a
    /// [`derived_key`](Work::derived_key); if it writes to this database, use [`step_tx`](Work::step_tx).
    ///
    /// The output takes up to 1 MiB (1,048,576 bytes) as JSON. A larger one is not recorded: `work` was done, and would
    /// be done again.
    ///
    /// Takes a connection briefly after `work`, and before the first step of a later attempt; none while `work` runs.
    /// Retries the record if the database is briefly away.
    ///
    /// # Errors
    /// The error of `work`; nothing is recorded. An [`Error`] of kind [`ClaimLost`](ErrorKind::ClaimLost): another
    /// holder has taken over, nothing more is recorded; return it. [`StepChanged`](ErrorKind::StepChanged): the step
    /// does not fit earlier records. [`InvalidInput`](ErrorKind::InvalidInput): for the name, before `work`, or for the
    /// output. [`Encoding`](ErrorKind::Encoding): the output cannot be read back. After a
    /// [retryable](Error::is_retryable) error the step may be recorded: call it again or return the error; recorded work
    /// is not repeated.
    ///
    /// # Cancel safety
    /// If dropped while `work` runs, `work` may be done but not recorded: the next call, in this attempt or a later
    /// one, does it again. If dropped later, the step may be recorded, and the next call finds out.
    pub async fn step<T, E, F>(&mut self, step: impl Into<Step>, work: F) -> Result<T, Failure>
    where
        T: Serialize + DeserializeOwned,
        E: Into<Failure>,
        F: AsyncFnOnce() -> Result<T, E>,
    {
        let step = step.into();
        if let Some(output) = self.recorded(&step).await? {
            return Ok(output);
        }
        let value = work().await.map_err(Into::into)?;
        let output = output(&value)?;
        self.stale = true; // until the record is confirmed
        match self.record(&step, &output).await {
            Ok(()) => {
                // An output that cannot be read back is recorded all the same: `work` was done, and must not be repeated.
                let value = read_back(&output);
                self.passed(step, output);
                Ok(value?)
            }
            Err(error) => self.unless_recorded(&step, error).await,
        }
    }

    /// As [`step`](Work::step), for work that writes to this database: writes and record commit together, so the work
    /// takes effect exactly once.
    ///
    /// # Errors
    /// As [`step`](Work::step). Everything is rolled back, except after [`CommitUnknown`](ErrorKind::CommitUnknown):
    /// then the next call finds out.
    ///
    /// # Cancel safety
    /// If dropped, the step is rolled back or committed; the next call, in this attempt or a later one, finds out.
    pub async fn step_tx<T, E, F>(&mut self, step: impl Into<Step>, work: F) -> Result<T, Failure>
    where
        T: Serialize + DeserializeOwned,
        E: Into<Failure>,
        F: AsyncFnOnce(&mut PgConnection) -> Result<T, E>,
    {
        let step = step.into();
        if let Some(output) = self.recorded(&step).await? {
            return Ok(output);
        }
        let mut tx = OwnedTransaction::lend(&self.pool, &self.loans).await?;
        let done = match work(&mut tx).await.map_err(Into::into) {
            Ok(value) => tx.check().and_then(|()| recordable(&value)).map_err(Into::into),
            Err(failure) => Err(failure),
        };
        let (output, value) = match done {
            Ok(done) => done,
            Err(failure) => {
                match failure.error() {
                    Some(error) => tx.rollback_after(sqlstate_in(error)).await,
                    None => tx.rollback().await,
                }
                return Err(failure);
            }
        };
        self.stale = true; // until the record is confirmed
        let recording = self.id.record_step(&mut tx, &step.name, step.definition.as_ref(), &output);
        let within = self.loans.answer_within();
        let recorded = answered(within, recording).await.map_err(database).flatten();
        match tx.commit_after(recorded).await {
            Ok(()) => {
                self.passed(step, output);
                Ok(value)
            }
            Err(error) => self.unless_recorded(&step, error).await,
        }
    }

    /// The transaction that commits with the operation's end, for its last writes. Opens it, or returns the open one.
    /// It uses a connection from then on.
    ///
    /// # Errors
    /// [`Connection`](ErrorKind::Connection).
    ///
    /// # Cancel safety
    /// Cancel safe: if dropped, no transaction is opened.
    pub async fn last_tx(&mut self) -> Result<&mut PgConnection> {
        let tx = match self.tx.take() {
            Some(tx) => tx,
            None => OwnedTransaction::lend(&self.pool, &self.loans).await?,
        };
        tx.renew_loan();
        Ok(self.tx.insert(tx))
    }

    /// Rolls the last transaction back, so that it can begin again.
    pub(crate) async fn undo_last_tx(&mut self) {
        if let Some(tx) = self.tx.take() {
            tx.rollback().await;
        }
    }

    /// Reports how far the work is, for clients that poll: up to 64 KiB (65,536 bytes) as JSON. Retries if the database
    /// is briefly away.
    ///
    /// # Errors
    /// [`ClaimLost`](ErrorKind::ClaimLost): another holder has taken over; return it.
    /// [`InvalidInput`](ErrorKind::InvalidInput): more than 64 KiB.
    ///
    /// # Cancel safety
    /// Cancel safe: if dropped, the report is stored or not.
    pub async fn progress<T: Serialize + ?Sized>(&mut self, progress: &T) -> Result<()> {
        let (id, progress) = (&self.id, &output(progress)?);
        id.report_progress(&self.pool, progress).await
    }

    async fn record(&self, step: &Step, output: &[u8]) -> Result<()> {
        self.id.commit_step(&self.pool, &step.name, step.definition.as_ref(), output).await
    }

    /// The output of a step that is recorded although recording failed: a COMMIT succeeded, and only its confirmation
    /// was lost.
    async fn unless_recorded<T: DeserializeOwned>(
        &mut self,
        step: &Step,
        error: Error,
    ) -> Result<T, Failure> {
        // InvalidInput: the output is too large, or the name is already recorded.
        if !matches!(error.kind(), ErrorKind::CommitUnknown | ErrorKind::InvalidInput) {
            return Err(error.into());
        }
        match self.recorded(step).await {
            Ok(Some(output)) => Ok(output),
            // The name may be recorded by this very call, which is no fault of the caller's.
            Err(unread) if error.kind() == ErrorKind::InvalidInput => Err(unread.into()),
            Err(unread)
                if matches!(unread.kind(), ErrorKind::ClaimLost | ErrorKind::StepChanged) =>
            {
                Err(unread.into())
            }
            _ => Err(error.into()),
        }
    }

    async fn read_steps(&mut self) -> Result<()> {
        let within = self.loans.answer_within();
        let read = || async {
            answered(within, self.id.recorded_steps(&self.pool)).await.map_err(database).flatten()
        };
        let (rows, _) = procedure::patiently(read).await;
        for row in rows? {
            if let Entry::Vacant(entry) = self.steps.entry(get(&row, "name")?) {
                let definition = get(&row, "definition")?;
                entry.insert(Recorded { definition, output: get(&row, "output")?, passed: false });
            }
        }
        self.stale = false;
        Ok(())
    }

    /// The recorded output of a step, if any. Fails if the record does not fit: another step's value is worse than
    /// none.
    async fn recorded<T: DeserializeOwned>(&mut self, step: &Step) -> Result<Option<T>> {
        if self.stale {
            self.read_steps().await?;
        }
        let changed = |what: &str| Err(Error::new(ErrorKind::StepChanged, what));
        let Some(recorded) = self.steps.get_mut(&step.name) else {
            // Every attempt reaches the same steps, so recorded ones come first.
            if self.steps.values().any(|recorded| !recorded.passed) {
                return changed(
                    "a step is new and comes before recorded ones; was one renamed or left out?",
                );
            }
            // Refuse a bad name now: later the work is already done.
            return checked("step", step.name.clone()).map(|_| None);
        };
        if recorded.passed {
            return changed("two steps have one name");
        }
        let definition = step.definition.as_ref().map(Fingerprint::as_bytes);
        if recorded.definition.as_deref() != definition {
            return changed("a recorded step was made from something else");
        }
        let Ok(output) = serde_json::from_slice(&recorded.output) else {
            return changed("a recorded step's output is not of the wanted type");
        };
        recorded.passed = true;
        Ok(Some(output))
    }

    fn passed(&mut self, step: Step, output: Vec<u8>) {
        let definition = step.definition.map(|definition| definition.as_bytes().to_vec());
        if let Entry::Vacant(entry) = self.steps.entry(step.name) {
            entry.insert(Recorded { definition, output, passed: true });
        }
        self.stale = false;
    }
}

/// A step's output, and what a later attempt will read from it.
fn recordable<T: Serialize + DeserializeOwned>(value: &T) -> Result<(Vec<u8>, T)> {
    let output = output(value)?;
    let value = read_back(&output)?;
    Ok((output, value))
}

fn output<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|error| {
        Error::with_source(ErrorKind::Encoding, "the output cannot be written as JSON", error)
    })
}

// By hand: outputs are private.
impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Work")
            .field("attempt", &self.attempt)
            .field("steps", &self.steps.len())
            .finish_non_exhaustive()
    }
}
