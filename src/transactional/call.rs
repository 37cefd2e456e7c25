//! One call on one key: begin and look, insert and commit, and what follows if they fail. `run` and transactional
//! routes do their work in between.

use std::time::Duration;

use sqlx::PgPool;

use super::key::{Found, Inserted, Isolation};
use super::performing::{Begun, Ended, Performing, Right};
use super::restarts::{Restarts, is_contention};
use super::transaction::OwnedTransaction;
use super::waiting::{Next, Waiting};
use crate::client::PgOnce;
use crate::error::{Error, ErrorKind, Result, sqlstate_in};
use crate::operation::Operation;
use crate::operation::response::Response;
use crate::protocol::answer::{Begin, Finished, InProgress};
use crate::protocol::procedure::Unfit;
use crate::telemetry::Event;

/// How many INSERTs without a row, each followed by a look without a row, make a call give up.
const NO_ROWS_MAX: u32 = 2;

pub(crate) struct Call<'a> {
    once: &'a PgOnce,
    pool: &'a PgPool,
    op: &'a Operation,
    /// Marks the call's transactions.
    token: String,
    waiting: Waiting,
    unfit: Unfit,
    /// Whether the next start skips the look.
    optimistic: bool,
    /// Above READ COMMITTED a snapshot is stale when a wait ends, so the wait has its own transaction.
    waits_apart: bool,
    restarts: Restarts,
    no_rows: u32,
}

impl<'a> Call<'a> {
    pub(crate) fn new(
        once: &'a PgOnce,
        pool: &'a PgPool,
        op: &'a Operation,
        waiting: Waiting,
    ) -> Self {
        Self {
            once,
            pool,
            op,
            token: format!("{:016x}", fastrand::u64(..)),
            waiting,
            unfit: Unfit::of(pool),
            optimistic: op.optimistic,
            waits_apart: false,
            restarts: Restarts::default(),
            no_rows: 0,
        }
    }

    /// Begins a transaction and looks for the key in it. Waits for other calls on the key, up to the call's limit.
    pub(crate) async fn begin(&mut self) -> Result<Begun> {
        loop {
            match self.begin_once().await {
                Ok(Begun::Answered(Begin::InProgress(wait))) => {
                    if let Some(answer) = self.wait(wait).await {
                        return Ok(Begun::Answered(answer));
                    }
                }
                Ok(Begun::Started(performing)) => {
                    self.waiting.leave();
                    return Ok(Begun::Started(performing));
                }
                Ok(Begun::Answered(answer)) => {
                    self.waiting.end(Some(&answer));
                    return Ok(Begun::Answered(answer));
                }
                // The connection came in a bad state. Nothing has run.
                Err(error) if self.unfit.takes_another(&error) => {}
                Err(error) if self.starts_again(&error).await => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits for other calls on the key. None: look again.
    async fn wait(&mut self, wait: InProgress) -> Option<Begin> {
        match self.waiting.again(self.op, &wait).await {
            Next::Look => None,
            Next::Replay(replay) => Some(Begin::Replay(replay)),
            Next::GiveUp => Some(Begin::InProgress(wait)),
        }
    }

    async fn begin_once(&mut self) -> Result<Begun> {
        if self.optimistic {
            let tx = OwnedTransaction::begin(self.pool).await?;
            return Ok(Begun::Started(Performing { tx, right: Right::None }));
        }
        let wait = self.waiting.in_database();
        if wait.is_zero() {
            let tx = OwnedTransaction::begin(self.pool).await?;
            return self.look(tx).await;
        }
        let mut tx = self.wait_for_key(wait).await?;
        if self.waits_apart {
            tx.rollback().await;
            tx = OwnedTransaction::begin(self.pool).await?;
        }
        self.look(tx).await
    }

    /// Begins a transaction that waits for the key's lock. It then has the lock, unless the wait was too short or the
    /// key is finished.
    async fn wait_for_key(&self, wait: Duration) -> Result<OwnedTransaction> {
        let mut tx = OwnedTransaction::begin(self.pool).await?;
        let waited = self.once.wait_for_key(&mut tx, self.op, wait).await;
        Ok(tx.unless_failed(waited).await?.0)
    }

    /// Looks, and tries to take the key's lock if there is no row.
    async fn look(&mut self, mut tx: OwnedTransaction) -> Result<Begun> {
        let looked = self.once.look(&mut tx, self.op, true, &self.token).await;
        let (mut tx, look) = tx.unless_failed(looked).await?;
        if look.is_committed {
            tx.rollback().await;
            return Err(committed_by_the_work());
        }
        self.waits_apart = look.isolation != Isolation::ReadCommitted;
        if !matches!(look.found, Found::Free) {
            self.no_rows = 0;
        }
        let right = match look.found {
            Found::Free => {
                if self.no_rows >= NO_ROWS_MAX {
                    tx.rollback().await;
                    return Err(swallowed());
                }
                if look.is_read_only {
                    tx.rollback().await;
                    return Err(read_only());
                }
                Right::Lock
            }
            Found::Taken => {
                self.give_back(tx).await;
                let wait = InProgress { lease_remaining: None };
                return Ok(Begun::Answered(Begin::InProgress(wait)));
            }
            Found::Replay(replay) if !self.op.lock_replay => {
                self.give_back(tx).await;
                return Ok(Begun::Answered(Begin::Replay(replay)));
            }
            Found::Replay(_) | Found::Overwritable | Found::Other => {
                let asked = self.once.ask(&mut tx, self.op, Duration::ZERO).await;
                let answer;
                (tx, answer) = tx.unless_failed(asked).await?;
                match answer {
                    Begin::Started(mut claim) => {
                        claim.settled = true; // it ends with this transaction in any case
                        if claim.recovered {
                            self.count(Event::Recovered);
                        }
                        Right::Claim(claim)
                    }
                    // The replay locked its row, so COMMIT waits for the standby.
                    Begin::Replay(replay) if self.op.lock_replay => {
                        tx.commit().await?;
                        return Ok(Begun::Answered(Begin::Replay(replay)));
                    }
                    answer => {
                        self.give_back(tx).await;
                        return Ok(Begun::Answered(answer));
                    }
                }
            }
        };
        // A kept failure may depend on what the work has read. At SERIALIZABLE only a COMMIT of the same transaction
        // proves the reads, so a savepoint lets the work be undone inside it.
        if look.isolation == Isolation::Serializable {
            let set = tx.set_savepoint().await;
            (tx, ()) = tx.unless_failed(set).await?;
        }
        Ok(Begun::Started(Performing { tx, right }))
    }

    /// Rolls back a transaction that has only asked. A leader rolls back at once, because it may have the key's lock,
    /// for which others wait.
    async fn give_back(&self, tx: OwnedTransaction) {
        if self.waiting.leads() {
            tx.rollback().await;
        } else {
            tx.leave();
        }
    }

    /// Writes the finished row and commits it with the work.
    pub(crate) async fn finish(
        &mut self,
        performing: Performing,
        finished: Finished,
        response: Response,
    ) -> Result<Ended> {
        let Performing { mut tx, right } = performing;
        let checked = tx.check();
        (tx, ()) = tx.unless_failed(checked).await?;
        let written = self.write(&mut tx, &right, finished, response).await;
        let written = written.map_err(Error::before_commit);
        let (tx, inserted) = tx.unless_failed(written).await?;
        if inserted != Inserted::Written {
            tx.rollback().await;
            self.optimistic = false;
            self.no_rows = if inserted == Inserted::NoRow { self.no_rows + 1 } else { 0 };
            return Ok(Ended::Lost);
        }
        tx.commit().await?;
        self.waiting.end(None);
        Ok(Ended::Committed)
    }

    async fn write(
        &self,
        tx: &mut OwnedTransaction,
        right: &Right,
        finished: Finished,
        response: Response,
    ) -> Result<Inserted> {
        match right {
            Right::Claim(claim) => {
                tx.check_mark().await?;
                claim.finish(tx, finished, response).await.map(|()| Inserted::Written)
            }
            Right::None => self.once.insert(tx, self.op, finished, response, true).await,
            Right::Lock => self.once.insert(tx, self.op, finished, response, false).await,
        }
    }

    /// Begins a transaction for work that ignores its key.
    pub(super) async fn begin_unprotected(&mut self) -> Result<Performing> {
        self.waiting.leave();
        let tx = OwnedTransaction::begin(self.pool).await?;
        Ok(Performing { tx, right: Right::None })
    }

    /// Commits the work, and the key with it if possible: where keys are only observed. Returns what became of the key;
    /// `None`: it could not be written.
    pub(crate) async fn finish_or_commit(
        &mut self,
        performing: Performing,
        response: Response,
    ) -> Result<Option<Inserted>> {
        let Performing { mut tx, right } = performing;
        let finished = async {
            tx.check()?;
            tx.set_savepoint().await?;
            // As an optimistic call, which waits only briefly for a row in the way.
            let right = if matches!(right, Right::Lock) { Right::None } else { right };
            let written = self.write(&mut tx, &right, Finished::Completed, response).await;
            if !matches!(written, Ok(Inserted::Written)) {
                tracing::warn!(error = ?written.as_ref().err(), "an observed key was not completed");
                tx.undo_work().await?;
            }
            Ok(written.ok())
        };
        let finished = finished.await;
        let (tx, inserted) = tx.unless_failed(finished).await?;
        tx.commit().await?;
        Ok(inserted)
    }

    /// Undoes the work and keeps its failure: takes the same path again, without the work. If another call ran in
    /// between, it has decided the operation.
    pub(crate) async fn keep(
        &mut self,
        performing: Performing,
        response: Response,
    ) -> Result<Ended> {
        self.optimistic = false;
        let Performing { mut tx, right } = performing;
        let checked = tx.check();
        (tx, ()) = tx.unless_failed(checked).await?;
        if tx.has_savepoint() {
            let undone = tx.undo_work().await;
            (tx, ()) = tx.unless_failed(undone).await?;
            return self.finish(Performing { tx, right }, Finished::Failed, response).await;
        }
        let tx = tx.start_anew(self.pool).await?;
        let mut begun = self.look(tx).await;
        loop {
            begun = match begun {
                Ok(Begun::Answered(Begin::InProgress(wait))) => match self.wait(wait).await {
                    Some(answer) => return Ok(Ended::Answered(answer)),
                    None => self.begin().await,
                },
                Ok(Begun::Answered(answer)) => return Ok(Ended::Answered(answer)),
                Ok(Begun::Started(performing)) if performing.tx.has_savepoint() => {
                    performing.tx.rollback().await; // optimistic: the work must run after the savepoint
                    return Ok(Ended::Lost);
                }
                Ok(Begun::Started(performing)) => {
                    match self.finish(performing, Finished::Failed, response.clone()).await {
                        Ok(Ended::Lost) => self.begin().await,
                        Err(error) if self.starts_again(&error).await => self.begin().await,
                        ended => return ended,
                    }
                }
                Err(error) if self.starts_again(&error).await => self.begin().await,
                Err(error) => return Err(error),
            };
        }
    }

    /// Undoes failed work, and looks whether another call has decided the operation meanwhile, which may be why the
    /// work failed. None: the work's error stands. An error: the work ended its own transaction.
    pub(crate) async fn undo(&mut self, performing: Performing) -> Result<Option<Begin>> {
        let mut tx = match performing.tx.start_anew(self.pool).await {
            Ok(tx) => tx,
            Err(lost) if lost.kind() == ErrorKind::TransactionLost => return Err(lost),
            Err(_) => return Ok(None), // the connection is closed, and the server rolls back
        };
        let looked = self.once.look(&mut tx, self.op, false, &self.token).await;
        let Ok((mut tx, look)) = tx.unless_failed(looked).await else { return Ok(None) };
        let decided = match look.found {
            _ if look.is_committed => {
                tx.rollback().await;
                return Err(committed_by_the_work());
            }
            Found::Replay(replay) if !self.op.lock_replay => Some(Begin::Replay(replay)),
            Found::Replay(_) | Found::Other => {
                match self.once.ask(&mut tx, self.op, Duration::ZERO).await {
                    // The replay locked its row, so COMMIT waits for the standby.
                    Ok(Begin::Replay(replay)) => {
                        let committed = tx.commit().await;
                        return Ok(committed.ok().map(|()| Begin::Replay(replay)));
                    }
                    Ok(answer @ (Begin::Mismatch(_) | Begin::Held(_))) => Some(answer),
                    Ok(Begin::Started(mut claim)) => {
                        claim.settled = true; // it is rolled back
                        None
                    }
                    _ => None,
                }
            }
            Found::Free | Found::Taken | Found::Overwritable => None,
        };
        tx.rollback().await;
        Ok(decided)
    }

    /// Whether to start again after this error of pgonce; pauses first. Everything was rolled back.
    pub(crate) async fn starts_again(&mut self, error: &Error) -> bool {
        // The connection has lost its prepared statements: it is closed, and another one is taken.
        if sqlstate_in(error) == Some("26000") {
            return self.unfit.takes_another(error);
        }
        is_contention(error) && self.lost_to_another().await
    }

    /// The same after a serialization failure or deadlock.
    pub(crate) async fn lost_to_another(&mut self) -> bool {
        self.optimistic = false;
        self.count(Event::Restarted);
        self.restarts.pause().await
    }

    fn count(&self, event: Event) {
        self.once.counts(self.op).count(&self.op.scope, event);
    }
}

fn committed_by_the_work() -> Error {
    Error::new(
        ErrorKind::TransactionLost,
        "the work committed its own transaction; what it wrote is committed without its key",
    )
}

fn read_only() -> Error {
    Error::new(ErrorKind::ReadOnly, "the database is read-only; pgonce needs the primary")
}

fn swallowed() -> Error {
    Error::new(
        ErrorKind::Corrupt,
        "the key's row was not written, and cannot be seen: is there a trigger, a rule or a row-level security policy \
         on pgonce's table?",
    )
}
