//! What the three consumers share: the database, the inbox, and the work.

use std::time::Duration;

use anyhow::Context;
use pgonce::{Failure, Inbox, Lease, PgOnce, Response, Policy};
use sqlx::postgres::PgPoolOptions;
use sqlx::{PgConnection, PgPool};

/// How many messages a consumer handles at once. Each takes a connection while it is handled.
pub const AT_ONCE: u16 = 20;

/// The queue, stream or topic to consume: the program's first argument.
#[must_use]
pub fn queue() -> String {
    std::env::args().nth(1).unwrap_or_else(|| "orders".to_owned())
}

/// The database that `DATABASE_URL` names, with the tables that the orders need.
///
/// # Errors
/// When there is none, or it is not ready.
pub async fn database() -> anyhow::Result<PgPool> {
    let url = std::env::var("DATABASE_URL").context("DATABASE_URL is not set")?;
    let pool = PgPoolOptions::new().max_connections(AT_ONCE.into()).connect(&url).await?;
    let mut conn = pool.acquire().await?;
    PgOnce::new().migrate(&mut conn).await?;
    create_tables(&mut conn).await?;
    drop(conn);
    Ok(pool)
}

/// The tables of the work, unless they are there.
///
/// # Errors
/// The database's.
pub async fn create_tables(conn: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::raw_sql(
        "create table if not exists account (
           customer text primary key, balance bigint not null check (balance >= 0));
         create table if not exists orders (
           id bigint generated always as identity, message text not null, customer text not null, amount bigint not null)",
    )
    .execute(conn)
    .await
    .map(drop)
}

/// After how many attempts a message is dead: `INBOX_ATTEMPTS`, or 5. Redelivered messages that are handled when
/// a consumer is killed count, whoever killed it.
fn attempts() -> u32 {
    std::env::var("INBOX_ATTEMPTS").ok().and_then(|attempts| attempts.parse().ok()).unwrap_or(5)
}

/// The inbox of the consumer with this name. What the brokers may deliver again after more than its retention
/// would be new; the README says how to bound that.
///
/// # Errors
/// When the name breaks the limits of a scope.
pub fn inbox(consumer: &str) -> pgonce::Result<Inbox> {
    let two_weeks = Duration::from_secs(14 * 86_400);
    let inbox = Inbox::new(&PgOnce::new(), consumer)?
        .policy(Policy::inbox().retention(two_weeks)?.max_attempts(attempts())?)?
        // So long a message waits that was delivered again and whose consumer then died.
        .lease(Lease::new(Duration::from_secs(2))?)?
        .pauses(Duration::from_millis(500), Duration::from_secs(60))?;
    Ok(inbox)
}

/// The work: an order, such as `alice 5`, is paid from the customer's account.
///
/// # Errors
/// Undone and tried again when there is no such customer, or too little in the account; final when it is no order.
pub async fn place_order(tx: &mut PgConnection, message: &str, body: &[u8]) -> Result<(), Failure> {
    let Some((customer, amount)) = parse(body) else {
        return Err(Failure::keep(Response::bytes("not an order")));
    };
    sqlx::query("update account set balance = balance - $2 where customer = $1 returning true")
        .bind(customer)
        .bind(amount)
        .fetch_one(&mut *tx)
        .await?;
    sqlx::query("insert into orders (message, customer, amount) values ($1, $2, $3)")
        .bind(message)
        .bind(customer)
        .bind(amount)
        .execute(tx)
        .await?;
    Ok(())
}

fn parse(body: &[u8]) -> Option<(&str, i64)> {
    let (customer, amount) = std::str::from_utf8(body).ok()?.split_once(' ')?;
    Some((customer, amount.parse().ok()?))
}
