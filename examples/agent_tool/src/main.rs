//! A server of tools for language models, over standard input and output. Each tool takes effect once, however often
//! the model calls it.
//!
//! `DATABASE_URL`; `AGENT_USER`, the user for whom the agent works; `PROVIDER_URL`, the payment provider.

mod answer;
mod provider;
mod tools;

use std::env;
use std::time::Duration;

use pgonce::{Lease, PgOnce};
use rmcp::ServiceExt;
use rmcp::transport::stdio;
use sqlx::PgPool;

use crate::provider::Provider;
use crate::tools::Tools;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let pool = PgPool::connect(&env::var("DATABASE_URL")?).await?;
    sqlx::raw_sql(include_str!("schema.sql")).execute(&pool).await?;
    let seconds = env::var("LEASE_SECONDS").map_or(Ok(30), |seconds| seconds.parse())?;
    let tools = Tools::new(
        PgOnce::new(),
        pool,
        env::var("AGENT_USER")?,
        Provider::new(env::var("PROVIDER_URL")?),
        Lease::new(Duration::from_secs(seconds))?,
    );
    tools.serve(stdio()).await?.waiting().await?;
    Ok(())
}
