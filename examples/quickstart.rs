//! The README's example, runnable: `cargo run --example quickstart`.
//!
//! Uses `DATABASE_URL`, or a temporary PostgreSQL.

#![allow(missing_docs, missing_debug_implementations, reason = "a program, not an API")]

use pgonce::{Begin, Fingerprint, Key, Operation, PgOnce, Reaper, Response, RunError, Scope};
use pgonce_testing::{Database, Options};
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgPool};

#[derive(Serialize)]
pub struct Request {
    pub account: String,
    pub amount: i64,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Payment {
    pub id: i64,
    pub amount: i64,
}

/// The business logic: knows no keys, only a transaction.
async fn charge(tx: &mut PgConnection, request: &Request) -> sqlx::Result<Payment> {
    let sql = "insert into quickstart_payment (account, amount) values ($1, $2) returning id";
    let id =
        sqlx::query_scalar(sql).bind(&request.account).bind(request.amount).fetch_one(tx).await?;
    Ok(Payment { id, amount: request.amount })
}

/// The same, once per key.
pub async fn pay(
    pool: &PgPool,
    once: &PgOnce,
    key: &str,
    request: &Request,
) -> Result<Payment, RunError<sqlx::Error>> {
    let scope = Scope::of(["acme", "payments.create"]); // tenant, operation
    let op = Operation::new(scope, key)?.fingerprint(Fingerprint::of_json(request)?);
    let payment = once.run(pool, &op, async |tx| charge(tx, request).await).await?;
    Ok(payment.into_inner())
}

/// The same with separate begin, work and complete.
pub async fn pay_in_steps(
    pool: &PgPool,
    once: &PgOnce,
    op: Operation,
    request: &Request,
) -> Result<Payment, Box<dyn std::error::Error>> {
    let mut tx = pool.begin().await?;
    match once.begin(&mut tx, &op).await? {
        Begin::Started(claim) => {
            let payment = charge(&mut tx, request).await?;
            claim.complete(&mut tx, Response::json(&payment)?).await?;
            pgonce::commit(tx).await?;
            Ok(payment)
        }
        Begin::Replay(replay) => Ok(replay.parse_json()?),
        Begin::InProgress(wait) => Err(format!("409: retry after {:?}", wait.retry_after()).into()),
        Begin::Mismatch(_) => Err("422: the key belongs to another request".into()),
        Begin::Held(_) => Err("409: no caller may continue until an operator decides".into()),
    }
}

pub async fn prepare(pool: &PgPool) -> sqlx::Result<()> {
    sqlx::query(
        "create table if not exists quickstart_payment
           (id bigint generated always as identity, account text, amount bigint)",
    )
    .execute(pool)
    .await?;
    Ok(())
}

#[tokio::main]
#[allow(dead_code, reason = "a test includes this file and calls pay")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let database = Database::from_env(&Options::new()).await?;
    let pool = PgPool::connect_with(database.connect_options()).await?;
    let once = PgOnce::new();
    once.migrate(&mut *pool.acquire().await?).await?;
    let (reaper, reapers_pool) = (Reaper::new(&once), pool.clone());
    tokio::spawn(async move { reaper.run_until(reapers_pool, std::future::pending::<()>()).await });
    prepare(&pool).await?;

    let key = Key::generate();
    let request = Request { account: "alice".to_owned(), amount: 100 };
    println!("first: {:?}", pay(&pool, &once, key.as_str(), &request).await?);
    println!("retry: {:?}", pay(&pool, &once, key.as_str(), &request).await?);
    let other = Request { account: "mallory".to_owned(), amount: 999 };
    match pay(&pool, &once, key.as_str(), &other).await {
        Err(RunError::Mismatch(_)) => println!("other request, same key: refused"),
        answer => println!("unexpected: {answer:?}"),
    }
    pool.close().await;
    database.stop().await;
    Ok(())
}
