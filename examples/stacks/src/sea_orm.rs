//! A payment in a transaction of SeaORM.

use sea_orm::entity::prelude::*;
use sea_orm::{DbBackend, Statement, TransactionTrait, sea_query::ExprTrait};

use crate::{BEGIN, Begun, COMPLETE, FAIL, Paid, PayError, Payment, Request, SCOPE};

mod account {
    use sea_orm::entity::prelude::*;
    #[sea_orm::model]
    #[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
    #[sea_orm(table_name = "account")]
    pub(crate) struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub customer: String,
        pub balance: i64,
    }
    impl ActiveModelBehavior for ActiveModel {}
}

/// Pays once per key. One try: see [`answered`](crate::answered).
///
/// # Errors
/// [`PayError`](crate::PayError). Only a declined payment leaves its key.
pub async fn pay(db: &DatabaseConnection, key: &str, request: &Request) -> Paid {
    request.check()?;
    let sql = |sql: &str, rest: [Value; 2]| {
        let values = [SCOPE.into(), key.into()].into_iter().chain(rest);
        Statement::from_sql_and_values(DbBackend::Postgres, sql, values)
    };
    // In a task: sqlx 0.9.0 does not roll back a `begin` that is dropped half way.
    let db = db.clone();
    let tx = tokio::spawn(async move { db.begin().await }).await??; // dropped, it rolls back
    let begin = sql(BEGIN, [request.customer.as_str().into(), request.amount.into()]);
    let row = tx.query_one_raw(begin).await?.ok_or_else(|| DbErr::RecordNotFound(BEGIN.into()))?;
    let token = match Begun::of(row.try_get_many_by_index()?)? {
        Begun::Started(token) => token,
        Begun::Replay(replay) => return replay,
    };
    // A savepoint: Err undoes the work, and keeps the claim.
    let paid = tx.transaction_async(async |tx| charge(tx, request).await).await;
    let paid = paid.map_err(PayError::from);
    let (finish, response) = match &paid {
        Ok(payment) => (COMPLETE, payment.to_json()?),
        Err(PayError::Declined(reason)) => (FAIL, reason.clone()),
        Err(_) => return paid,
    };
    tx.execute_raw(sql(finish, [token.into(), response.into()])).await?;
    tx.commit().await?;
    paid
}

async fn charge(tx: &impl ConnectionTrait, request: &Request) -> Paid {
    let account = account::Entity::update_many()
        .col_expr(account::Column::Balance, Expr::col(account::Column::Balance).sub(request.amount))
        .filter(account::Column::Customer.eq(&request.customer));
    let accounts = account.exec_with_returning(tx).await?;
    Payment::of(accounts.first().map(|account| account.balance))
}
