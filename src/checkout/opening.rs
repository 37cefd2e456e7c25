//! How the transactions of `run` and of transactional routes begin.

use std::time::{Duration, Instant};

use sqlx::PgPool;
use sqlx_core::transaction::TransactionManager;

use super::{BEGIN, Checkout, Manager, SAVEPOINT};
use crate::answer::Begin;
use crate::claim::{Claim, Unwritten};
use crate::error::{Result, database};
use crate::literal::{self, Literal};
use crate::once::{Looked, PgOnce, RoundTrips};
use crate::operation::{Operation, attempts, millis};
use crate::protocol::procedure::Unfit;

/// The longest wait that the database takes.
const WAIT_MAX: Duration = Duration::from_secs(3600);
/// When a call that waits for another one of this process looks for itself: that one may hang on its way to an answer
/// that is there.
const LOOK_AFTER: Duration = Duration::from_millis(100);
/// SQLSTATE of open_once: the key is not new.
const NOT_NEW: &str = "IK004";

/// What begin has answered to [`Checkout::ask`].
#[allow(clippy::large_enum_variant, reason = "the large one is the usual one")]
pub(crate) enum Asked {
    /// In a transaction with a savepoint, so that [`fail`](Checkout::fail) can undo the work and keep the claim.
    Started(Checkout, Claim),
    /// Anything but *started*. There is no transaction.
    Answered(Begin),
}

impl Checkout {
    /// Begins an operation in a transaction of its own, waiting up to `wait` for others at work on the key. Of those
    /// who wait in this process one does so in the database, and the others for that one. A connection that refuses
    /// because of what it was left with is closed, and another one is asked: no work has run yet.
    pub(crate) async fn ask(
        pool: &PgPool,
        once: &PgOnce,
        op: &Operation,
        wait: Duration,
        round_trips: RoundTrips,
    ) -> Result<Asked> {
        let mut unfit = Unfit::of(pool);
        loop {
            match Self::ask_one(pool, once, op, wait, round_trips).await {
                Err(error) if unfit.takes_another(&error) => {}
                asked => return asked,
            }
        }
    }

    async fn ask_one(
        pool: &PgPool,
        once: &PgOnce,
        op: &Operation,
        mut wait: Duration,
        round_trips: RoundTrips,
    ) -> Result<Asked> {
        op.check(once.retention)?;
        let waits = !wait.is_zero();
        let id = once.flights.id(pool, op);
        let enter = || if waits { once.flights.enter(id) } else { None };
        let mut flight = enter();
        let mut looks_first = round_trips == RoundTrips::Three;
        let mut patience = LOOK_AFTER;
        loop {
            let since = Instant::now();
            let must_wait = waits && flight.is_none();
            let waited = must_wait && once.flights.wait_for(id, wait.min(patience)).await;
            let mut checkout = Self::borrow(pool).await?;
            if waited {
                wait = wait.saturating_sub(since.elapsed());
                (looks_first, patience) = (true, WAIT_MAX); // there most likely is an answer
            }
            let since = Instant::now();
            let left = || wait.saturating_sub(since.elapsed());
            let in_database = if must_wait { Duration::ZERO } else { wait };
            let mut looked = match looks_first {
                true => checkout.look_first(once, op, in_database).await?,
                false => Looked::New,
            };
            if must_wait && !looked.is_final() && !left().is_zero() {
                flight = enter();
                if flight.is_none() {
                    wait = left();
                    checkout.settled = true; // nothing is open on it
                    continue;
                }
                if matches!(looked, Looked::Answered(_)) {
                    looked = checkout.look_first(once, op, left()).await?;
                }
            }
            if let Looked::Answered(answer) = looked {
                return Ok(checkout.answered(answer));
            }
            checkout.flight = flight;
            return match (looked, round_trips) {
                (Looked::New, RoundTrips::Two | RoundTrips::Three) => {
                    checkout.begin_unwritten(once, op, left()).await
                }
                _ => checkout.begin_written(once, op, left()).await,
            };
        }
    }

    /// Begins without a row if the key is new, and else as the verbs do.
    async fn begin_unwritten(
        mut self,
        once: &PgOnce,
        op: &Operation,
        wait: Duration,
    ) -> Result<Asked> {
        let since = Instant::now();
        let left = || wait.saturating_sub(since.elapsed());
        if let Some(claim) = self.open(once, op, wait).await? {
            return Ok(Asked::Started(self, claim));
        }
        // Somebody was quicker, or nobody has looked yet. Who waits for an answer waits beside others, not in line.
        if let Looked::Answered(answer) = self.look_first(once, op, left()).await? {
            return Ok(self.answered(answer));
        }
        // Whoever worked on it has left no answer, or the row has to be written over: begin decides.
        self.begin_written(once, op, left()).await
    }

    fn answered(mut self, answer: Begin) -> Asked {
        self.settled = true;
        Asked::Answered(answer)
    }

    /// Looks before there is a transaction. A look that fails, or is given up, closes the connection: it may still
    /// wait for a lock, or somebody has left a transaction open on it.
    async fn look_first(
        &mut self,
        once: &PgOnce,
        op: &Operation,
        wait: Duration,
    ) -> Result<Looked> {
        once.look(&mut self.conn, op, wait).await
    }

    /// Opens the transaction with a new key's lock in it, in one round trip. None: the key is not new, and nothing
    /// is open.
    async fn open(
        &mut self,
        once: &PgOnce,
        op: &Operation,
        wait: Duration,
    ) -> Result<Option<Claim>> {
        let retention = op.retention.unwrap_or(once.retention);
        let values = [
            Literal::Text(op.scope.as_str()),
            Literal::Text(op.key.as_str()),
            Literal::Number(Some(millis(retention))),
            Literal::Number(Some(millis(wait))),
            Literal::Number(op.max_attempts.map(|max| attempts(max).into())),
        ];
        // BEGIN comes behind the call, and takes over the transaction that the call is in: had it begun before, a
        // call that raises would leave an aborted one behind, of which the driver knows nothing. The savepoint comes
        // last: undoing the work must not give the lock back.
        let open = literal::fill(once.statements.open_once.as_str(), &values);
        let message = literal::message(&[&open, "begin", SAVEPOINT]);
        match Manager::begin(&mut self.conn, Some(message)).await {
            Ok(()) => {
                let mut claim = once.claim(&op.scope, &op.key, uuid::Uuid::nil(), 1);
                claim.unwritten = Some(Unwritten { fingerprint: op.fingerprint, retention });
                claim.settled = true; // it ends with this transaction, however that ends
                Ok(Some(claim))
            }
            Err(error) => match error.as_database_error().and_then(|error| error.code()) {
                Some(code) if code == NOT_NEW => Ok(None),
                _ => Err(database(error).naming(op)),
            },
        }
    }

    /// Opens the transaction and begins in it as the verbs do: with a row.
    async fn begin_written(
        mut self,
        once: &PgOnce,
        op: &Operation,
        wait: Duration,
    ) -> Result<Asked> {
        self.open_transaction(BEGIN).await?;
        match once.ask(&mut self.conn, op, wait).await {
            Ok(Begin::Started(mut claim)) => {
                claim.settled = true; // as above
                match self.execute(SAVEPOINT).await {
                    Ok(()) => Ok(Asked::Started(self, claim)),
                    Err(error) => {
                        self.rollback().await;
                        Err(error)
                    }
                }
            }
            Ok(answer) => {
                // A replay that locked its row must wait for the standby. Nothing else has written.
                match answer {
                    Begin::Replay(_) if op.lock_replay => self.commit().await?,
                    _ => self.rollback().await,
                }
                Ok(Asked::Answered(answer))
            }
            Err(error) => {
                self.rollback_after(&error).await;
                Err(error)
            }
        }
    }
}
