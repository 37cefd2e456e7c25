//! The tables of these tests and their statements.

use sqlx::postgres::PgArguments;
use sqlx::query::QueryAs;
use sqlx::{FromRow, Postgres};

use crate::support::db::TestDb;

pub type Rows<'q, T> = QueryAs<'q, Postgres, T, PgArguments>;

#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct Customer {
    pub id: i64,
    pub email: String,
    pub phone: Option<String>,
    pub deleted_at: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct Article {
    pub title: String,
    pub version: i32,
}

/// A schema with the tables, which its sessions find without its name.
pub async fn tables() -> TestDb {
    let db = TestDb::new().await;
    db.execute(
        "create table {}.customer (
           id bigint generated always as identity primary key, email text not null unique, phone text unique,
           name text unique, deleted_at text);
         create table {}.article (
           id bigint generated always as identity, title text not null, version integer not null default 1);
         insert into {}.article (title) values ('first');
         create table {}.stock (qty integer not null);
         insert into {}.stock values (2)",
    )
    .await;
    let options = db.options.clone().options([("search_path", &db.schema)]);
    TestDb::open(&db.schema, options, 10).await
}

pub fn insert<'q>(email: &'q str, phone: &'q str) -> Rows<'q, Customer> {
    let insert = "insert into customer (email, phone) values ($1, $2) on conflict (email) do nothing returning *";
    sqlx::query_as(insert).bind(email).bind(phone)
}

pub fn customer(email: &str) -> Rows<'_, Customer> {
    sqlx::query_as("select * from customer where email = $1").bind(email)
}

pub fn delete(email: &str) -> Rows<'_, Customer> {
    let delete = "update customer set deleted_at = clock_timestamp() where email = $1 and deleted_at is null returning *";
    sqlx::query_as(delete).bind(email)
}

pub fn undelete(email: &str) -> Rows<'_, Customer> {
    let undelete = "update customer set deleted_at = null where email = $1 and deleted_at is not null returning *";
    sqlx::query_as(undelete).bind(email)
}

pub fn update(seen: i32, title: &str) -> Rows<'_, Article> {
    let update =
        "update article set title = $2, version = version + 1 where version = $1 returning *";
    sqlx::query_as(update).bind(seen).bind(title)
}

pub fn article<'q>() -> Rows<'q, Article> {
    sqlx::query_as("select * from article")
}
