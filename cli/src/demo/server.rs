//! The payment server, without and with pgonce.

use std::error::Error;

use pgonce::sqlx::pool::PoolConnection;
use pgonce::sqlx::{self, Connection, PgConnection, PgPool, Postgres, SqlStr};
use pgonce::{Fingerprint, Operation, PgOnce, RunError};

use super::books::Books;
use super::plan::Payment;

pub(super) struct Server {
    pool: PgPool,
    insert: SqlStr,
    once: Option<PgOnce>,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Answer {
    /// `id` is the payment's number.
    Paid { id: i64, replayed: bool },
    /// The same request is running; retry later.
    InProgress,
}

type BoxError = Box<dyn Error + Send + Sync>;

impl Server {
    pub(super) fn new(books: &Books, pool: PgPool, once: Option<PgOnce>) -> Self {
        let insert = books.sql(
            "insert into :schema.payment (key, account, amount) values ($1, $2, $3) returning id",
        );
        Self { pool, insert, once }
    }

    pub(super) async fn charge(&self, payment: &Payment) -> Result<Answer, BoxError> {
        match &self.once {
            None => self.charge_unprotected(payment).await,
            Some(once) => self.charge_protected(once, payment).await,
        }
    }

    /// What most services do: one transaction per request. Correct until a request is repeated.
    async fn charge_unprotected(&self, payment: &Payment) -> Result<Answer, BoxError> {
        let mut borrowed = Borrowed { conn: self.pool.acquire().await?, settled: false };
        let mut tx = borrowed.conn.begin().await?;
        let id = self.insert(&mut tx, payment).await?;
        tx.commit().await?;
        borrowed.settled = true;
        Ok(Answer::Paid { id, replayed: false })
    }

    /// The same with pgonce: key, payment and response commit in one transaction.
    async fn charge_protected(&self, once: &PgOnce, payment: &Payment) -> Result<Answer, BoxError> {
        let request = [payment.account.as_bytes(), &payment.amount.to_be_bytes()];
        let op = Operation::new("demo/payments.create", payment.key.as_str())?
            .fingerprint(Fingerprint::parts(request));
        match once.run(&self.pool, &op, async |tx| self.insert(tx, payment).await).await {
            Ok(done) => Ok(Answer::Paid { id: *done, replayed: done.is_replay() }),
            Err(RunError::InProgress(_)) => Ok(Answer::InProgress),
            Err(error) => Err(error.into()),
        }
    }

    async fn insert(&self, conn: &mut PgConnection, payment: &Payment) -> Result<i64, sqlx::Error> {
        sqlx::query_scalar(self.insert.clone())
            .bind(&payment.key)
            .bind(&payment.account)
            .bind(payment.amount)
            .fetch_one(conn)
            .await
    }
}

/// If a request is dropped inside a transaction, sqlx 0.9.0 may return the connection to the pool with the transaction
/// open, and the next request would write into it. So the connection is closed.
struct Borrowed {
    conn: PoolConnection<Postgres>,
    settled: bool,
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        if !self.settled {
            self.conn.close_on_drop();
        }
    }
}
