//! A payment in a transaction of diesel-async, with connections from bb8.

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Nullable, Text};
use diesel_async::pooled_connection::bb8::Pool;
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl};

use crate::{BEGIN, Begun, COMPLETE, FAIL, Paid, PayError, Payment, Request, SCOPE};
use schema::account;

mod schema {
    diesel::table! { account (customer) { customer -> Text, balance -> BigInt, } }
}

#[derive(QueryableByName)]
#[rustfmt::skip]
struct Row {
    #[diesel(sql_type = Text)] answer: String,
    #[diesel(sql_type = Nullable<Text>)] token: Option<String>,
    #[diesel(sql_type = Nullable<Text>)] status: Option<String>,
    #[diesel(sql_type = Nullable<Text>)] response: Option<String>,
}

/// Pays once per key. One try: see [`answered`](crate::answered).
///
/// # Errors
/// [`PayError`](crate::PayError). Only a declined payment leaves its key.
pub async fn pay(pool: &Pool<AsyncPgConnection>, key: &str, request: &Request) -> Paid {
    request.check()?;
    let mut conn = pool.get().await?;
    // Commits after Ok, rolls back after Err.
    conn.transaction(async |tx| {
        let begin = sql_query(BEGIN).bind::<Text, _>(SCOPE).bind::<Text, _>(key);
        let begin = begin.bind::<Text, _>(&request.customer).bind::<BigInt, _>(request.amount);
        let row: Row = begin.get_result(tx).await?;
        let token = match Begun::of((row.answer, row.token, row.status, row.response))? {
            Begun::Started(token) => token,
            Begun::Replay(replay) => return Ok(replay),
        };
        // A savepoint: Err undoes the work, and keeps the claim.
        let paid = tx.transaction(async |tx| charge(tx, request).await).await;
        let (finish, response) = match &paid {
            Ok(payment) => (COMPLETE, payment.to_json()?),
            Err(PayError::Declined(reason)) => (FAIL, reason.clone()),
            Err(_) => return paid.map(Ok),
        };
        let finish = sql_query(finish).bind::<Text, _>(SCOPE).bind::<Text, _>(key);
        finish.bind::<Text, _>(token).bind::<Text, _>(response).execute(tx).await?;
        Ok(paid)
    })
    .await?
}

async fn charge(tx: &mut AsyncPgConnection, request: &Request) -> Paid {
    let account = diesel::update(account::table.find(&request.customer));
    let account = account.set(account::balance.eq(account::balance - request.amount));
    let balance = account.returning(account::balance).get_result(tx).await.optional()?;
    Payment::of(balance)
}
