//! Shared by the three consumers: the database, the inbox, and the work.

use std::time::Duration;

use anyhow::Context;
use pgonce::{Failure, Inbox, Lease, PgOnce, Policy, Response};
use sqlx::postgres::PgPoolOptions;
use sqlx::{PgConnection, PgPool};

/// How many messages a consumer handles at once. Each needs a connection.
pub const AT_ONCE: u16 = 20;

/// The queue, stream or topic to consume: the program's first argument.
#[must_use]
pub fn queue() -> String {
    std::env::args().nth(1).unwrap_or_else(|| "orders".to_owned())
}

/// The database in `DATABASE_URL`, with the tables for orders.
///
/// # Errors
/// If `DATABASE_URL` is not set, or the database is not reachable or not ready.
pub async fn database() -> anyhow::Result<PgPool> {
    let url = std::env::var("DATABASE_URL").context("DATABASE_URL is not set")?;
    let pool = PgPoolOptions::new().max_connections(AT_ONCE.into()).connect(&url).await?;
    let mut conn = pool.acquire().await?;
    PgOnce::new().migrate(&mut conn).await?;
    create_tables(&mut conn).await?;
    drop(conn);
    Ok(pool)
}

/// Creates the work's tables if they are missing.
///
/// # Errors
/// The database's errors.
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

/// After this many attempts a message is dead: `INBOX_ATTEMPTS`, or 5. All redelivered messages in progress when a
/// consumer is killed count one attempt, even those that did not kill it.
fn attempts() -> u32 {
    std::env::var("INBOX_ATTEMPTS").ok().and_then(|attempts| attempts.parse().ok()).unwrap_or(5)
}

/// The inbox of the consumer with this name. A message that the broker redelivers after the inbox's retention would be
/// new; the README says how to prevent this.
///
/// # Errors
/// If the name is not a valid scope.
pub fn inbox(consumer: &str) -> pgonce::Result<Inbox> {
    let two_weeks = Duration::from_secs(14 * 86_400);
    let inbox = Inbox::new(&PgOnce::new(), consumer)?
        .policy(Policy::inbox().retention(two_weeks)?.max_attempts(attempts())?)?
        // How long a redelivered message waits after its consumer has died.
        .lease(Lease::new(Duration::from_secs(2))?)?
        .pauses(Duration::from_millis(500), Duration::from_secs(60))?;
    Ok(inbox)
}

/// The work: pays an order, such as `alice 5`, from the customer's account.
///
/// # Errors
/// Rolled back and retried if the customer is unknown or the balance too low. Final if the body is no order.
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
