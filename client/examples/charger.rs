//! Charges orders until it is killed, and after a restart: `charger URL FILE ORDERS`. The tests kill it.

#![allow(missing_docs, reason = "a program, not an API")]

use std::time::Duration;

use pgonce_client::{FileIntentStore, IntentStore, RetryPolicy, client};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().ok_or_else(|| anyhow::anyhow!("charger URL FILE ORDERS"));
    let (url, file, orders) = (next()?, next()?, next()?.parse::<u32>()?);
    let http = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0);
    let client = client(http, RetryPolicy::new())?;
    let intents = FileIntentStore::open(file, Duration::from_secs(23 * 3600))?;
    // What a killed process has left.
    for intent in intents.unknown().await? {
        charge(&client, &url, &intents, intent.name()).await?;
    }
    for order in 1..=orders {
        charge(&client, &url, &intents, &format!("order-{order}")).await?;
    }
    println!("all charged");
    Ok(())
}

async fn charge(
    client: &reqwest_middleware::ClientWithMiddleware,
    url: &str,
    intents: &FileIntentStore,
    order: &str,
) -> anyhow::Result<()> {
    let intent = intents.begin(order).await?;
    let charge = client.post(url).header("idempotency-key", intent.key()).body(order.to_owned());
    let charge = charge.send().await?;
    anyhow::ensure!(charge.status().is_success(), "{order}: {}", charge.status());
    intents.finish(&intent).await?;
    Ok(())
}
