//! The three libraries behind one trait.

use deadpool_postgres::tokio_postgres::{Config, NoTls};
use diesel_async::AsyncPgConnection;
use diesel_async::pooled_connection::{AsyncDieselConnectionManager, bb8};
use stacks::{Paid, Request, answered};

use crate::database::{CONNECTIONS, Database, PATIENCE};

pub trait Stack: Sized {
    async fn new(db: &Database) -> Self;
    async fn pay(&self, key: &str, request: &Request) -> Paid;
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
}

/// Tasks and the handlers of web frameworks need this.
#[expect(dead_code, reason = "it only has to compile")]
fn a_call_is_send(a: &SeaOrm, b: &DieselAsync, c: &TokioPostgres, request: &Request) {
    fn is_send(_: impl Send) {}
    is_send(answered(PATIENCE, || stacks::sea_orm::pay(&a.0, "k", request)));
    is_send(answered(PATIENCE, || stacks::diesel_async::pay(&b.0, "k", request)));
    is_send(answered(PATIENCE, || stacks::tokio_postgres::pay(&c.0, "k", request)));
}
