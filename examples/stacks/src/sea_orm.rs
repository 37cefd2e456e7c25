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
    let sql = |sql: &str, rest: [Value; 2]| {
        let values = [SCOPE.into(), key.into()].into_iter().chain(rest);
        Statement::from_sql_and_values(DbBackend::Postgres, sql, values)
    };
    let tx = db.begin().await?; // dropped without COMMIT, it rolls back
    let begin = sql(BEGIN, [request.customer.as_str().into(), request.amount.into()]);
    let row = tx.query_one_raw(begin).await?.ok_or_else(|| DbErr::RecordNotFound(BEGIN.into()))?;
    let token = match Begun::of(row.try_get_many_by_index()?)? {
        Begun::Started(token) => token,
        Begun::Replay(replay) => return replay,
    };
    let savepoint = tx.begin().await?;
    let paid = charge(&savepoint, request).await;
    match &paid {
        Ok(payment) => {
            savepoint.commit().await?;
            tx.execute_raw(sql(COMPLETE, [token.into(), payment.to_json()?.into()])).await?;
        }
        Err(PayError::Declined(reason)) => {
            savepoint.rollback().await?; // undoes the work, keeps the claim
            tx.execute_raw(sql(FAIL, [token.into(), reason.as_str().into()])).await?;
        }
        Err(_) => return paid,
    }
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
