//! A payment in a transaction of tokio-postgres, with connections from deadpool.

use deadpool_postgres::{Pool, Transaction};

use crate::{BEGIN, Begun, COMPLETE, FAIL, Paid, PayError, Payment, Request, SCOPE};

/// Pays once per key. One try: see [`answered`](crate::answered).
///
/// # Errors
/// [`PayError`](crate::PayError). Only a declined payment leaves its key.
pub async fn pay(pool: &Pool, key: &str, request: &Request) -> Paid {
    request.check()?;
    let mut client = pool.get().await?;
    let mut tx = client.transaction().await?; // dropped without COMMIT, it rolls back
    let row = tx.query_one(BEGIN, &[&SCOPE, &key, &request.customer, &request.amount]).await?;
    let token = match Begun::of((row.get(0), row.get(1), row.get(2), row.get(3)))? {
        Begun::Started(token) => token,
        Begun::Replay(replay) => return replay,
    };
    let savepoint = tx.transaction().await?;
    let paid = charge(&savepoint, request).await;
    match &paid {
        Ok(payment) => {
            savepoint.commit().await?;
            tx.execute(COMPLETE, &[&SCOPE, &key, &token, &payment.to_json()?]).await?;
        }
        Err(PayError::Declined(reason)) => {
            savepoint.rollback().await?; // undoes the work, keeps the claim
            tx.execute(FAIL, &[&SCOPE, &key, &token, reason]).await?;
        }
        Err(_) => return paid,
    }
    tx.commit().await?;
    paid
}

async fn charge(tx: &Transaction<'_>, request: &Request) -> Paid {
    let sql = "update account set balance = balance - $2 where customer = $1 returning balance";
    let row = tx.query_opt(sql, &[&request.customer, &request.amount]).await?;
    Payment::of(row.map(|row| row.get("balance")))
}
