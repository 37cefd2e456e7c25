//! Payments and card charges over HTTP, each done once per `Idempotency-Key`:
//! `cargo run --example payments`. The page http walks through it with curl.
//!
//! Uses `DATABASE_URL`, or a temporary PostgreSQL. Listens on 127.0.0.1, port `PORT` (3000).
//!
//! - `api.rs`: the routes, and the order of their layers. Begin here.
//! - `payments.rs`: a transactional route, for work in this database.
//! - `charges.rs`: a leased route, for work that calls another service.
//! - `provider.rs`: a fake of that service.
//! - `order.rs`, `error.rs`: the requests, and the error responses.

#![allow(unreachable_pub, reason = "a program, not an API")]

mod api;
mod charges;
mod error;
mod order;
mod payments;
mod provider;

use anyhow::Context;
use pgonce::web::IdempotencyLayer;
use pgonce::{PgOnce, Reaper};
use pgonce_testing::{Database, Options};
use sqlx::{Connection, PgConnection, PgPool};
use tokio::net::TcpListener;

use api::App;
use provider::CardProvider;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let port = std::env::var("PORT").unwrap_or_else(|_| "3000".to_owned());
    let port: u16 = port.parse().with_context(|| format!("PORT={port} is not a port"))?;
    let listener = TcpListener::bind(("127.0.0.1", port))
        .await
        .with_context(|| format!("cannot listen on 127.0.0.1:{port}; set PORT to another port"))?;

    let database = Database::from_env(&Options::new()).await?;
    let once = PgOnce::new();
    // A pool would retry for 30 s. An unreachable database should be reported at once.
    let mut conn = PgConnection::connect_with(&database.connect_options())
        .await
        .context("cannot connect to the database")?;
    // Several instances may run these at once.
    once.migrate(&mut conn).await?;
    create_tables(&mut conn).await?;
    conn.close().await?;
    let pool = PgPool::connect_with(database.connect_options()).await?;
    let provider = CardProvider::connect(database.connect_options()).await?;

    let (reaper, reaped) = (Reaper::new(&once), pool.clone());
    let reaper =
        tokio::spawn(async move { reaper.run_until(reaped, std::future::pending::<()>()).await });

    let idempotency = IdempotencyLayer::new(once, pool.clone(), api::scope);
    let app = App { pool: pool.clone(), provider: provider.clone() };
    let router = api::router(app, &idempotency)?;
    let stop = asked_to_stop()?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, router).with_graceful_shutdown(stop).await?;

    // No request is left, but charges of clients that hung up may still run.
    idempotency.drain().await;
    reaper.abort();
    pool.close().await;
    provider.close().await;
    database.stop().await;
    println!("stopped");
    Ok(())
}

/// The service's tables. They have no constraint against a second payment or charge, so that you can see what prevents
/// one.
async fn create_tables(conn: &mut PgConnection) -> sqlx::Result<()> {
    // Statements sent together are one transaction. The lock lets one instance pass at a time: without it, two starting
    // instances would both find no schema and both create it.
    let tables = "
        select pg_advisory_xact_lock(hashtextextended('payments_example', 0));
        create schema if not exists payments_example;
        create table if not exists payments_example.payment (
          payment_id bigint generated always as identity primary key,
          tenant text not null, account text not null, amount bigint not null, currency text not null
        );
        create table if not exists payments_example.charge (
          charge_id bigint generated always as identity primary key, receipt bigint not null,
          tenant text not null, account text not null, amount bigint not null, currency text not null
        );";
    sqlx::raw_sql(tables).execute(conn).await.map(drop)
}

/// Ends when the process is asked to stop: by Ctrl-C, or by the SIGTERM of process managers.
#[cfg(unix)]
fn asked_to_stop() -> std::io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

#[cfg(not(unix))]
fn asked_to_stop() -> std::io::Result<impl Future<Output = ()>> {
    // An error means that there is no Ctrl-C here, so there is nothing to wait for.
    Ok(async { tokio::signal::ctrl_c().await.unwrap_or_default() })
}
