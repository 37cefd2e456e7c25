//! What a handler takes out of its request: the transaction, and the claim.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::Extensions;
use sqlx::{PgConnection, PgPool};

use crate::error::Result;
use crate::leased::loans::Loans;
use crate::operation::Operation;
use crate::operation::key::Key;
use crate::transactional::OwnedTransaction;

/// The transaction that holds the key. What a handler writes through it is committed together with the
/// key and the response, before the response's first byte is sent; or not at all.
///
/// A handler takes it as an extractor (feature `axum`) or with [`OnceTx::of`], uses it as a
/// `&mut PgConnection`, and drops it when it returns. It never commits: the layer does. Nested
/// transactions (`tx.begin()`) are savepoints; never send `COMMIT` or `ROLLBACK` yourself: what was
/// written before would be committed without its key.
///
/// On a leased route there is none at first; [`OnceClaim::begin`] opens it.
///
/// ```
/// # #[cfg(feature = "axum")] mod example {
/// use pgonce::web::OnceTx;
///
/// async fn create_payment(mut tx: OnceTx) -> Result<&'static str, &'static str> {
///     sqlx::query("insert into payment (amount) values (100)")
///         .execute(&mut *tx)
///         .await
///         .map_err(|_| "not paid")?;
///     Ok("paid")
/// }
/// # }
/// ```
pub struct OnceTx {
    /// Always there, until drop gives it back.
    checkout: Option<OwnedTransaction>,
    handle: Handle,
}

/// The operation a handler performs: for keys to hand to others, and on a leased route for the
/// transaction that finishes it.
///
/// ```
/// # #[cfg(feature = "axum")] mod example {
/// use pgonce::web::OnceClaim;
/// # async fn ask_provider(key: pgonce::Key) -> bool { true }
///
/// async fn create_charge(claim: OnceClaim) -> Result<&'static str, pgonce::Error> {
///     let paid = ask_provider(claim.derived_key("charge")).await; // no connection is held meanwhile
///     let mut tx = claim.begin().await?;
///     sqlx::query("insert into charge (paid) values ($1)").bind(paid).execute(&mut *tx).await.ok();
///     Ok("charged") // the layer commits the charge, the key and this answer
/// }
/// # }
/// ```
#[derive(Clone)]
pub struct OnceClaim(Handle);

/// Why a handler cannot have its [`OnceTx`] or [`OnceClaim`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OnceRejection {
    /// The request did not go through an [`IdempotencyLayer`](super::IdempotencyLayer), or its method is
    /// none that the layer covers.
    #[error("no idempotency layer around this handler covers this method")]
    NoLayer,
    /// The route is leased: take a [`OnceClaim`] and call [`begin`](OnceClaim::begin) when the outside
    /// work is done.
    #[error("this route is leased: take OnceClaim and call begin")]
    Leased,
    /// Another part of the handler holds the transaction.
    #[error("the transaction is in use elsewhere in this handler")]
    InUse,
    /// The handler has answered, or its client has gone.
    #[error("the handler has ended")]
    Over,
    /// There is no connection to the database, and the route fails open or observes only.
    #[error("there is no connection to the database")]
    NoConnection,
}

/// What the layer and the handler share. It is in the request's extensions.
#[derive(Clone)]
pub(crate) struct Handle(Arc<Shared>);

struct Shared {
    pool: PgPool,
    leased: bool,
    /// Of a leased claim.
    loans: Option<Loans>,
    /// A random one without a key.
    operation: Operation,
    /// 0 without a claim.
    attempt: u32,
    /// Whether the handler has begun to act: it has used the transaction or the claim.
    used: AtomicBool,
    tx_used: AtomicBool,
    tx: Mutex<Tx>,
}

enum Tx {
    /// There is none (yet).
    None,
    Here(OwnedTransaction),
    WithHandler,
    /// The handler has answered; what comes back now comes too late.
    Over,
}

/// The layer's own end of a handle. Dropped, for example with a client that hangs up, it takes the
/// transaction away from whoever else has the handle: a task that the handler has left behind must not
/// keep it open.
pub(crate) struct Lent(Handle);

/// What the handler has left behind.
pub(crate) struct Left {
    pub(crate) checkout: Option<OwnedTransaction>,
    pub(crate) used: bool,
    pub(crate) tx_used: bool,
    /// The handler has answered, but somebody still holds its transaction.
    pub(crate) kept: bool,
}

impl Handle {
    pub(crate) fn lend(
        pool: &PgPool,
        leased: bool,
        operation: Operation,
        attempt: u32,
        checkout: Option<OwnedTransaction>,
        loans: Option<Loans>,
    ) -> Lent {
        let tx = checkout.map_or(Tx::None, Tx::Here);
        Lent(Self(Arc::new(Shared {
            pool: pool.clone(),
            leased,
            loans,
            operation,
            attempt,
            used: AtomicBool::new(false),
            tx_used: AtomicBool::new(false),
            tx: Mutex::new(tx),
        })))
    }

    /// Whether a layer has begun a key for this request.
    pub(crate) fn is_claimed(extensions: &Extensions) -> bool {
        extensions.get::<Self>().is_some_and(|handle| handle.0.attempt > 0)
    }

    /// Takes back what the handler has.
    pub(crate) fn finish(&self) -> Left {
        let tx = std::mem::replace(&mut *self.tx(), Tx::Over);
        let kept = matches!(tx, Tx::WithHandler);
        let checkout = if let Tx::Here(checkout) = tx { Some(checkout) } else { None };
        let used = self.0.used.load(Ordering::Relaxed);
        let tx_used = self.0.tx_used.load(Ordering::Relaxed);
        Left { checkout, used, tx_used, kept }
    }

    fn tx(&self) -> MutexGuard<'_, Tx> {
        // Nothing panics while it is held.
        self.0.tx.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn use_it(&self) {
        self.0.used.store(true, Ordering::Relaxed);
    }

    /// The transaction, if it is here; `Ok(None)` when there is none yet.
    fn take(&self) -> Result<Option<OnceTx>, OnceRejection> {
        let mut tx = self.tx();
        match std::mem::replace(&mut *tx, Tx::WithHandler) {
            Tx::Here(checkout) => {
                Ok(Some(OnceTx { checkout: Some(checkout), handle: self.clone() }))
            }
            Tx::None => {
                *tx = Tx::None;
                Ok(None)
            }
            Tx::WithHandler => Err(OnceRejection::InUse),
            Tx::Over => {
                *tx = Tx::Over;
                Err(OnceRejection::Over)
            }
        }
    }
}

impl Deref for Lent {
    type Target = Handle;

    fn deref(&self) -> &Handle {
        &self.0
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.0.finish();
    }
}

impl OnceTx {
    /// Takes the transaction out of a request's extensions.
    ///
    /// # Errors
    /// [`OnceRejection`]: the request did not go through a layer that opens one, or another extractor has it.
    pub fn of(extensions: &Extensions) -> Result<Self, OnceRejection> {
        Self::from_handle(extensions.get().ok_or(OnceRejection::NoLayer)?)
    }

    pub(crate) fn from_handle(handle: &Handle) -> Result<Self, OnceRejection> {
        if handle.0.leased {
            return Err(OnceRejection::Leased);
        }
        handle.take()?.ok_or(OnceRejection::NoConnection)
    }
}

impl OnceClaim {
    /// Takes the claim out of a request's extensions.
    ///
    /// # Errors
    /// [`OnceRejection::NoLayer`]: the request did not go through a layer that covers it.
    pub fn of(extensions: &Extensions) -> Result<Self, OnceRejection> {
        extensions.get().map(Self::from_handle).ok_or(OnceRejection::NoLayer)
    }

    pub(crate) fn from_handle(handle: &Handle) -> Self {
        Self(handle.clone())
    }

    /// A key for a remote that takes idempotency keys itself: the same one in every attempt at this
    /// operation, another one for every other `name` and operation. See [`Operation::derived_key`].
    /// It is the same one where the layer ignores keys, observes only or fails open. A request without a key, or
    /// whose key is malformed or without a scope on a route that lets it pass, gets a random one.
    #[must_use]
    pub fn derived_key(&self, name: &str) -> Key {
        self.0.use_it();
        self.0.0.operation.derived_key(name)
    }

    /// How many claims the key has had, this one included; 0 without a key.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.0.0.attempt
    }

    /// Opens the transaction that will be committed with the key and the response, when the outside
    /// work is done; or takes the one that is open. Should another request have taken the claim over,
    /// nothing of it is kept.
    ///
    /// # Errors
    /// [`Connection`](crate::ErrorKind::Connection), or
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) when another part of the handler holds it.
    ///
    /// # Cancel safety
    /// Cancel safe: dropped, there is none.
    pub async fn begin(&self) -> Result<OnceTx> {
        self.0.use_it();
        let rejected = |error: OnceRejection| crate::Error::invalid(error.to_string());
        if let Some(tx) = self.0.take().map_err(rejected)? {
            return Ok(tx);
        }
        let shared = &self.0.0;
        let checkout = match &shared.loans {
            Some(loans) => OwnedTransaction::lend(&shared.pool, loans).await?,
            None => OwnedTransaction::begin(&shared.pool).await?,
        };
        let mut tx = self.0.tx();
        match *tx {
            Tx::None => {}
            Tx::Over => return Err(rejected(OnceRejection::Over)),
            // Two at once; the second connection is closed.
            _ => return Err(rejected(OnceRejection::InUse)),
        }
        *tx = Tx::WithHandler;
        Ok(OnceTx { checkout: Some(checkout), handle: self.0.clone() })
    }
}

impl Deref for OnceTx {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        self.checkout.as_ref().expect("BUG: only drop takes it")
    }
}

impl DerefMut for OnceTx {
    fn deref_mut(&mut self) -> &mut PgConnection {
        self.handle.use_it();
        self.handle.0.tx_used.store(true, Ordering::Relaxed);
        let checkout = self.checkout.as_mut().expect("BUG: only drop takes it");
        checkout.renew_loan();
        checkout
    }
}

impl Drop for OnceTx {
    fn drop(&mut self) {
        let mut tx = self.handle.tx();
        if matches!(*tx, Tx::WithHandler)
            && let Some(checkout) = self.checkout.take()
        {
            *tx = Tx::Here(checkout);
        }
    }
}

impl fmt::Debug for OnceTx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnceTx(..)")
    }
}

impl fmt::Debug for OnceClaim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnceClaim").field("attempt", &self.attempt()).finish_non_exhaustive()
    }
}
