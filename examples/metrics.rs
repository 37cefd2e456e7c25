//! A service whose metrics Prometheus reads: `cargo run --example metrics`, then `curl 127.0.0.1:9187/metrics`.
//!
//! Listens on 127.0.0.1:`PORT` (9187). Uses `DATABASE_URL`, or a temporary PostgreSQL. `examples/observability` has
//! dashboards and alerts for these metrics.

#![allow(missing_docs, missing_debug_implementations, reason = "a program, not an API")]

use axum::Router;
use axum::routing::get;
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder};
use pgonce::{Class, Operation, PgOnce, Reaper};
use pgonce_testing::{Database, Options};
use sqlx::{PgConnection, PgPool};
use tokio::net::TcpListener;

/// With buckets for the waits: without, they are summaries, which cannot be added up over processes.
pub fn exporter() -> Result<PrometheusBuilder, BuildError> {
    let waits = Matcher::Full(pgonce::metrics::WAITED.name.to_owned());
    PrometheusBuilder::new()
        .set_buckets_for_metric(waits, &[0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0])
}

#[tokio::main]
#[allow(dead_code, reason = "a test includes this file and calls exporter")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let metrics = exporter()?.install_recorder()?; // before a client's first call
    let database = Database::from_env(&Options::new()).await?;
    let pool = PgPool::connect_with(database.connect_options()).await?;
    let once = PgOnce::new().class(Class::new("payments")?);
    once.migrate(&mut *pool.acquire().await?).await?;
    let (reaper, reapers_pool) = (Reaper::new(&once), pool.clone());
    tokio::spawn(async move { reaper.run_until(reapers_pool, std::future::pending::<()>()).await });

    // A payment and its retry: one started call, and one duplicate prevented.
    let op = Operation::new("acme/payments.create", "order-17")?;
    for _ in 0..2 {
        once.run(&pool, &op, async |_: &mut PgConnection| Ok::<_, sqlx::Error>(17)).await?;
    }

    let port = std::env::var("PORT").unwrap_or_else(|_| "9187".to_owned());
    let listener = TcpListener::bind(format!("127.0.0.1:{port}")).await?;
    println!("http://{}/metrics", listener.local_addr()?);
    let app = Router::new().route("/metrics", get(async move || metrics.render()));
    Ok(axum::serve(listener, app).await?)
}
