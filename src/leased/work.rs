//! Work under a lease: steps that are done once, and what else it may do with its claim.

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

/// A piece of leased work that is done once per operation: its name, and what it was made from.
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
    /// A step of this name: 1 to 255 bytes, like a key. Names are permanent: a recorded step is found by its name,
    /// wherever it stands, and a step with another name is another step.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), definition: None }
    }

    /// What the step is made from. Recorded with it; a later attempt that makes it from something else is
    /// refused instead of getting an output that does not fit.
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
    /// Whether the table may know of steps that are not in `steps`: those of earlier attempts, and one whose
    /// record was not confirmed.
    stale: bool,
    /// The transaction that will complete the operation, once it has been asked for.
    pub(crate) tx: Option<OwnedTransaction>,
}

/// A step as this attempt knows it.
struct Recorded {
    definition: Option<Vec<u8>>,
    output: Vec<u8>,
    /// Whether this attempt has reached it.
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

    /// Does `work` once per operation, and commits its output. A later attempt does not do it again: it gets the
    /// recorded output. This attempt gets the output as it is read back from its JSON, too.
    ///
    /// A crash between `work` and the record does it again. If it calls a remote, hand that a
    /// [`derived_key`](Work::derived_key); if it writes to this database, use
    /// [`step_tx`](Work::step_tx).
    ///
    /// The output takes up to 1 MiB (1,048,576 bytes) as JSON. A larger one is not recorded, and it is too late
    /// then: `work` was done, and would be done again.
    ///
    /// Takes a connection for a moment after `work`, and before the first step of a later attempt, and none while
    /// `work` runs. Recording is tried again when the database is away for a moment.
    ///
    /// # Errors
    /// Whatever `work` returns; nothing is recorded then. An [`Error`] of the kind
    /// [`ClaimLost`](ErrorKind::ClaimLost) when another holder has taken over: nothing was recorded, return
    /// it. [`StepChanged`](ErrorKind::StepChanged) when the step does not fit what earlier attempts recorded.
    /// [`InvalidInput`](ErrorKind::InvalidInput) for its name, before `work`, or for its output;
    /// [`Encoding`](ErrorKind::Encoding) for an output that cannot be read back.
    /// After one that [is retryable](Error::is_retryable) the step may be recorded or not: call it again, or
    /// return it, and what is recorded is not done again.
    ///
    /// # Cancel safety
    /// Dropped while `work` runs, it may be done and not recorded; it is done again when it is called again,
    /// in this attempt or a later one. Dropped after that, it may be recorded, and the next call finds out.
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
        let (output, value) = recordable(&value)?;
        self.stale = true; // until the record is confirmed
        match self.record(&step, &output).await {
            Ok(()) => {
                self.passed(step, output);
                Ok(value)
            }
            Err(error) => self.unless_recorded(&step, error).await,
        }
    }

    /// As [`step`](Work::step), for work that writes to this database: its writes and its record are one
    /// transaction, so that it is done exactly once.
    ///
    /// # Errors
    /// As [`step`](Work::step). Everything is rolled back on any but
    /// [`CommitUnknown`](ErrorKind::CommitUnknown), after which the next call finds out.
    ///
    /// # Cancel safety
    /// Dropped, it is rolled back, or had been committed; the next call finds out, in this attempt or a later
    /// one.
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

    /// The transaction that will be committed with the operation's end: for its last writes. Opens it, or
    /// returns the one that is open; it holds a connection from then on.
    ///
    /// # Errors
    /// [`Connection`](ErrorKind::Connection).
    ///
    /// # Cancel safety
    /// Cancel safe: dropped, there is none.
    pub async fn last_tx(&mut self) -> Result<&mut PgConnection> {
        let tx = match self.tx.take() {
            Some(tx) => tx,
            None => OwnedTransaction::lend(&self.pool, &self.loans).await?,
        };
        tx.renew_loan();
        Ok(self.tx.insert(tx))
    }

    /// Rolls the last transaction back, so that it can be begun anew.
    pub(crate) async fn undo_last_tx(&mut self) {
        if let Some(tx) = self.tx.take() {
            tx.rollback().await;
        }
    }

    /// Says how far the work is, for those who poll: up to 64 KiB (65,536 bytes) as JSON. Tried again when the
    /// database is away for a moment.
    ///
    /// # Errors
    /// [`ClaimLost`](ErrorKind::ClaimLost) when another holder has taken over: return it.
    /// [`InvalidInput`](ErrorKind::InvalidInput) for more than that.
    ///
    /// # Cancel safety
    /// Cancel safe: dropped, it is said or not.
    pub async fn progress<T: Serialize + ?Sized>(&mut self, progress: &T) -> Result<()> {
        let (id, progress) = (&self.id, &output(progress)?);
        id.report_progress(&self.pool, progress).await
    }

    async fn record(&self, step: &Step, output: &[u8]) -> Result<()> {
        self.id.commit_step(&self.pool, &step.name, step.definition.as_ref(), output).await
    }

    /// The output of a step whose record failed, if it is recorded all the same: the COMMIT got through, or an
    /// earlier try did, and only its confirmation not.
    async fn unless_recorded<T: DeserializeOwned>(
        &mut self,
        step: &Step,
        error: Error,
    ) -> Result<T, Failure> {
        // InvalidInput: a step of this name is recorded already, if not too large.
        let may_be = matches!(error.kind(), ErrorKind::CommitUnknown | ErrorKind::InvalidInput);
        if may_be && let Ok(Some(output)) = self.recorded(step).await {
            return Ok(output);
        }
        Err(error.into())
    }

    /// Reads what is recorded.
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

    /// The recorded output of a step, if there is one. Anything that does not fit is an error: another
    /// step's value is worse than none.
    async fn recorded<T: DeserializeOwned>(&mut self, step: &Step) -> Result<Option<T>> {
        if self.stale {
            self.read_steps().await?;
        }
        let changed = |what: &str| Err(Error::new(ErrorKind::StepChanged, what));
        let Some(recorded) = self.steps.get_mut(&step.name) else {
            // Work is the same from attempt to attempt, so what is recorded comes first.
            if self.steps.values().any(|recorded| !recorded.passed) {
                return changed(
                    "a step is new and comes before recorded ones; was one renamed or left out?",
                );
            }
            // Its record would be refused, and the work was done by then.
            return checked("step", step.name.clone()).map(|_| None);
        };
        if std::mem::replace(&mut recorded.passed, true) {
            return changed("two steps have one name");
        }
        let definition = step.definition.as_ref().map(Fingerprint::as_bytes);
        if recorded.definition.as_deref() != definition {
            return changed("a recorded step was made from something else");
        }
        match serde_json::from_slice(&recorded.output) {
            Ok(output) => Ok(Some(output)),
            Err(_) => changed("a recorded step's output is not of the wanted type"),
        }
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
