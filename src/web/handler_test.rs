//! What a handler takes out of its request, made without a request.

use sqlx::PgPool;

use super::handle::{Handle, Lent, OnceClaim, OnceRejection, OnceTx};
use crate::error::{Error, ErrorKind, Result};
use crate::operation::Operation;
use crate::transactional::OwnedTransaction;

/// What the layer gives to a handler, for a unit test that calls the handler as a function. There is no layer and no
/// key: nothing is looked up, stored or replayed.
///
/// ```no_run
/// # #[cfg(feature = "axum")] mod example {
/// use pgonce::{Operation, web::{HandlerTest, OnceTx}};
///
/// async fn create_payment(mut tx: OnceTx, amount: i64) -> sqlx::Result<()> {
///     let insert = sqlx::query("insert into payment (amount) values ($1)").bind(amount);
///     insert.execute(&mut *tx).await.map(drop)
/// }
///
/// async fn a_payment_is_written(pool: sqlx::PgPool) -> Result<(), Box<dyn std::error::Error>> {
///     let test = HandlerTest::transactional(&pool, Operation::new("acme/payments", "k")?).await?;
///     create_payment(test.tx()?, 100).await?;
///     test.commit().await?;
///     Ok(())
/// }
/// # }
/// ```
#[must_use = "dropped, it rolls back"]
pub struct HandlerTest(Lent);

impl HandlerTest {
    /// As on a transactional route: opens a transaction on a connection of the pool.
    ///
    /// # Errors
    /// [`Connection`](ErrorKind::Connection).
    ///
    /// # Cancel safety
    /// Cancel safe: dropped, there is none.
    pub async fn transactional(pool: &PgPool, op: Operation) -> Result<Self> {
        let tx = OwnedTransaction::begin(pool).await?;
        Ok(Self(Handle::lend(pool, false, op, 1, Some(tx), None)))
    }

    /// As on a leased route: the handler calls [`OnceClaim::begin`] for its transaction.
    pub fn leased(pool: &PgPool, op: Operation) -> Self {
        Self(Handle::lend(pool, true, op, 1, None, None))
    }

    /// The transaction, for a handler that takes an [`OnceTx`].
    ///
    /// # Errors
    /// As [`OnceTx::of`].
    pub fn tx(&self) -> Result<OnceTx, OnceRejection> {
        OnceTx::from_handle(&self.0)
    }

    /// The claim, for a handler that takes an [`OnceClaim`].
    #[must_use]
    pub fn claim(&self) -> OnceClaim {
        OnceClaim::from_handle(&self.0)
    }

    /// Commits what the handler has written, as the layer does after a success. Dropped instead, it rolls back, as the
    /// layer does after a failure.
    ///
    /// # Errors
    /// [`TransactionLost`](ErrorKind::TransactionLost) when the handler kept its [`OnceTx`] or ended the transaction;
    /// else as [`commit`](crate::commit).
    ///
    /// # Cancel safety
    /// Dropped, it may be committed or not.
    pub async fn commit(self) -> Result<()> {
        let left = self.0.finish();
        match left.checkout {
            Some(mut tx) => {
                let is_ours = tx.check_mark().await;
                let (tx, ()) = tx.unless_failed(is_ours).await?;
                tx.commit_probed().await
            }
            None if left.kept => Err(Error::new(
                ErrorKind::TransactionLost,
                "the handler kept its transaction; nothing was committed",
            )),
            None => Ok(()),
        }
    }
}

impl std::fmt::Debug for HandlerTest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HandlerTest(..)")
    }
}
