//! The three libraries behind one trait.

use deadpool_postgres::tokio_postgres::{Config, NoTls};
use diesel_async::pooled_connection::{AsyncDieselConnectionManager, bb8};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use sea_orm::{ConnectionTrait, DbErr};
use stacks::{Paid, PayError, Request, answered};

use crate::database::{CONNECTIONS, Database, PATIENCE};

pub trait Stack: Sized {
    async fn new(db: &Database) -> Self;
    async fn pay(&self, key: &str, request: &Request) -> Paid;
    /// Errors that the library makes itself, as the example sees them.
    async fn own_errors(&self) -> Vec<PayError>;
}

pub struct SeaOrm(sea_orm::DatabaseConnection);

impl Stack for SeaOrm {
    async fn new(db: &Database) -> Self {
        let mut options = sea_orm::ConnectOptions::new(db.url());
        options.max_connections(CONNECTIONS);
        Self(sea_orm::Database::connect(options).await.unwrap())
    }

    async fn pay(&self, key: &str, request: &Request) -> Paid {
        stacks::sea_orm::pay(&self.0, key, request).await
    }

    async fn own_errors(&self) -> Vec<PayError> {
        let select = sea_orm::Statement::from_string(sea_orm::DbBackend::Postgres, "select 'a'");
        let row = self.0.query_one_raw(select).await.unwrap().unwrap();
        vec![
            row.try_get_by_index::<i64>(0).unwrap_err().into(),
            row.try_get_by_index::<String>(1).unwrap_err().into(),
            DbErr::RecordNotFound("row".to_owned()).into(),
            DbErr::Type("type".to_owned()).into(),
            DbErr::Json("json".to_owned()).into(),
        ]
    }
}

#[derive(Debug, diesel::QueryableByName)]
struct Number {
    #[diesel(sql_type = diesel::sql_types::BigInt)]
    #[expect(dead_code, reason = "no row can be read")]
    n: i64,
}

pub struct DieselAsync(bb8::Pool<AsyncPgConnection>);

impl Stack for DieselAsync {
    async fn new(db: &Database) -> Self {
        let manager = AsyncDieselConnectionManager::new(db.key_values());
        Self(bb8::Pool::builder().max_size(CONNECTIONS).build(manager).await.unwrap())
    }

    async fn pay(&self, key: &str, request: &Request) -> Paid {
        stacks::diesel_async::pay(&self.0, key, request).await
    }

    async fn own_errors(&self) -> Vec<PayError> {
        let mut conn = self.0.get().await.unwrap();
        let none = diesel::sql_query("select 1::int8 as n where false");
        let text = diesel::sql_query("select 'a' as n");
        vec![
            none.get_result::<Number>(&mut conn).await.unwrap_err().into(),
            text.get_result::<Number>(&mut conn).await.unwrap_err().into(),
            diesel::result::Error::SerializationError("value".into()).into(),
            // COMMIT is refused, and then the connection breaks.
            diesel::result::Error::RollbackErrorOnCommit {
                rollback_error: Box::new(diesel::result::Error::BrokenTransactionManager),
                commit_error: Box::new(diesel::result::Error::NotFound),
            }
            .into(),
            diesel::result::Error::QueryBuilderError("query".into()).into(),
        ]
    }
}

pub struct TokioPostgres(deadpool_postgres::Pool);

impl Stack for TokioPostgres {
    async fn new(db: &Database) -> Self {
        let config: Config = db.key_values().parse().unwrap();
        let manager = deadpool_postgres::Manager::new(config, NoTls);
        let builder = deadpool_postgres::Pool::builder(manager).max_size(CONNECTIONS as usize);
        Self(builder.build().unwrap())
    }

    async fn pay(&self, key: &str, request: &Request) -> Paid {
        stacks::tokio_postgres::pay(&self.0, key, request).await
    }

    async fn own_errors(&self) -> Vec<PayError> {
        let client = self.0.get().await.unwrap();
        let row = client.query_one("select 'a'", &[]).await.unwrap();
        vec![
            row.try_get::<_, i64>(0).unwrap_err().into(),
            row.try_get::<_, String>(1).unwrap_err().into(),
            client.query_one("select $1::int8", &[&"a"]).await.unwrap_err().into(),
            client.query_one("select 'a' where false", &[]).await.unwrap_err().into(),
            client.batch_execute("select '\0'").await.unwrap_err().into(), // encode: InvalidInput
        ]
    }
}

/// Tasks and the handlers of web frameworks need this.
#[expect(dead_code, reason = "it only has to compile")]
fn a_call_is_send(a: &SeaOrm, b: &DieselAsync, c: &TokioPostgres, request: &Request) {
    fn is_send(_: impl Send) {}
    is_send(answered(PATIENCE, || stacks::sea_orm::pay(&a.0, "k", request)));
    is_send(answered(PATIENCE, || stacks::diesel_async::pay(&b.0, "k", request)));
    is_send(answered(PATIENCE, || stacks::tokio_postgres::pay(&c.0, "k", request)));
}
