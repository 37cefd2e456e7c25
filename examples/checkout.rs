//! A checkout in three steps. One process is killed half way, another finishes: `cargo run --example checkout`.
//!
//! Uses `DATABASE_URL`, or a temporary PostgreSQL. The program starts itself again for each process of the story. The
//! first process kills itself at the worst moment: the card is charged, but this is not recorded yet.

#![allow(missing_docs, reason = "a program, not an API")]

use std::process::{Command, ExitStatus};
use std::time::Duration;

use pgonce::{Failure, Key, Lease, Operation, PgOnce, Policy, Work};
use pgonce_testing::{Database, Options};
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, PgConnection, PgPool};

type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

/// How long a dead process blocks its order. A live process renews the lease. In production, begin with 30 s.
const LEASE: Duration = Duration::from_secs(2);
/// How long a process waits for another one that works on the same order.
const WAIT: Duration = Duration::from_secs(60);

#[derive(Serialize, Deserialize)]
struct Receipt {
    charge: i64,
    items_left: i64,
}

/// The whole order. After any failure, call it again with the same key.
async fn checkout(pool: &PgPool, order: &str, dies: bool) -> Result<Receipt> {
    let op = Operation::new("acme/orders.checkout", order)?.policy(Policy::new().wait(WAIT)?);
    let lease = Lease::new(LEASE)?;
    let done = PgOnce::new()
        .run_leased(pool, &op, lease, async |work: &mut Work| {
            say(&format!("has the claim (attempt {})", work.attempt()));

            // In this database: the step's writes and its record are one transaction.
            let mut ran = false;
            let items_left = work.step_tx("reserve", async |tx| {
                ran = true;
                reserve_stock(tx).await
            });
            let items_left = items_left.await?;
            say(if ran { "reserve: done" } else { "reserve: skipped, already recorded" });

            // Somewhere else: called at least once. By the key, the provider recognizes a repeated call.
            let key = work.derived_key("charge");
            let charge = work.step("charge", async || {
                say("charge: calls the provider");
                let receipt = provider::charge(pool, &key).await?;
                if dies {
                    say("charge: the card is charged; kill -9 before this is recorded");
                    kill_myself();
                }
                Ok::<_, sqlx::Error>(receipt)
            });
            let charge = charge.await?;
            say(&format!("charge: done, with receipt {charge}"));

            let key = work.derived_key("mail");
            work.step("mail", async || provider::mail(pool, &key).await).await?;
            say("mail: done");

            // Commits together with the end of the operation.
            mark_as_paid(work.last_tx().await?, order, charge).await?;
            Ok::<_, Failure>(Receipt { charge, items_left })
        })
        .await?;
    say(if done.is_replay() { "already done: gets the stored receipt" } else { "finished" });
    Ok(done.into_inner())
}

async fn reserve_stock(tx: &mut PgConnection) -> sqlx::Result<i64> {
    let sql = "update checkout_example.stock set items = items - 1 returning items";
    sqlx::query_scalar(sql).fetch_one(tx).await
}

async fn mark_as_paid(tx: &mut PgConnection, order: &str, charge: i64) -> sqlx::Result<()> {
    let sql = "insert into checkout_example.paid (order_key, charge) values ($1, $2)";
    sqlx::query(sql).bind(order).bind(charge).execute(tx).await.map(drop)
}

/// A fake card provider and mail service, as third parties run them: they keep their own books, and what they did stays
/// done when the caller dies. They honor keys.
mod provider {
    use super::{Key, PgPool};

    pub(super) async fn charge(pool: &PgPool, key: &Key) -> sqlx::Result<i64> {
        serve(pool, "charge", key).await
    }

    pub(super) async fn mail(pool: &PgPool, key: &Key) -> sqlx::Result<i64> {
        serve(pool, "mail", key).await
    }

    /// A known key gets the same receipt again.
    async fn serve(pool: &PgPool, what: &str, key: &Key) -> sqlx::Result<i64> {
        let sql = "insert into checkout_example.remote (what, key, calls) values ($1, $2, 1)
                   on conflict (key) do update set calls = remote.calls + 1
                   returning receipt";
        sqlx::query_scalar(sql).bind(what).bind(key.as_str()).fetch_one(pool).await
    }

    /// How often the provider was called, and how often it acted.
    pub(super) async fn books(pool: &PgPool, what: &str) -> sqlx::Result<(i64, i64)> {
        let sql = "select coalesce(sum(calls), 0)::bigint, count(*)
                     from checkout_example.remote where what = $1";
        sqlx::query_as(sql).bind(what).fetch_one(pool).await
    }
}

fn say(what: &str) {
    println!("  [process {}] {what}", std::process::id());
}

/// Ends like a process that runs out of memory or whose machine fails: without any cleanup.
fn kill_myself() -> ! {
    let kill = format!("kill -9 {}", std::process::id());
    let _ = Command::new("sh").args(["-c", &kill]).status();
    unreachable!("the process is dead");
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = std::env::args().skip(1).collect::<Vec<_>>();
    if let [order, part] = &arguments[..] {
        let options = std::env::var("DATABASE_URL")?.parse::<PgConnectOptions>()?;
        checkout(&PgPool::connect_with(options).await?, order, part == "dies").await?;
        return Ok(());
    }
    let database = Database::from_env(&Options::new()).await?;
    let told = tell(database.connect_options()).await;
    database.stop().await;
    told
}

/// The story.
async fn tell(options: PgConnectOptions) -> Result<()> {
    let pool = PgPool::connect_with(options.clone()).await?;
    prepare(&pool).await?;
    let order = Key::generate();
    println!("An order comes in. Three steps: reserve the item, charge the card, send the mail.");
    let status = process(&options, order.as_str(), "dies").await?;
    println!("\nThe first process is dead ({status}). The customer has paid and got nothing.");
    println!("Its claim lapses {} s after its last heartbeat. A second process:", LEASE.as_secs());
    let status = process(&options, order.as_str(), "finishes").await?;
    assert!(status.success(), "the second process finishes the order");
    println!("\nThe customer's client got no response and sends the same order again:");
    process(&options, order.as_str(), "retries").await?;

    println!("\nThe books:");
    let items: i64 =
        sqlx::query_scalar("select items from checkout_example.stock").fetch_one(&pool).await?;
    println!("  stock: 10 before, {items} left");
    for what in ["charge", "mail"] {
        let (calls, done) = provider::books(&pool, what).await?;
        println!("  {what}: requested {} with one key, done {}", times(calls), times(done));
    }
    let paid: i64 =
        sqlx::query_scalar("select count(*) from checkout_example.paid").fetch_one(&pool).await?;
    println!("  order: paid {}", times(paid));
    pool.close().await;
    Ok(())
}

fn times(count: i64) -> String {
    match count {
        1 => "once".to_owned(),
        2 => "twice".to_owned(),
        _ => format!("{count} times"),
    }
}

/// Runs this program as another process that knows only the database and the order's key.
async fn process(options: &PgConnectOptions, order: &str, part: &str) -> Result<ExitStatus> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args([order, part]).env("DATABASE_URL", options.to_url_lossy().as_str());
    Ok(tokio::task::spawn_blocking(move || command.status()).await??)
}

async fn prepare(pool: &PgPool) -> Result<()> {
    PgOnce::new().migrate(&mut *pool.acquire().await?).await?;
    let tables = "
        drop schema if exists checkout_example cascade;
        create schema checkout_example;
        create table checkout_example.stock (items bigint not null check (items >= 0));
        insert into checkout_example.stock values (10);
        create table checkout_example.paid (order_key text primary key, charge bigint not null);
        create table checkout_example.remote (
          receipt bigint generated always as identity, what text not null,
          key text primary key, calls bigint not null);";
    sqlx::raw_sql(tables).execute(pool).await?;
    Ok(())
}
