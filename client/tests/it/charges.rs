//! Five hundred charges through a network that loses 40 % of the answers and cuts 10 % of the requests.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use pgonce_client::{Budget, RetryLayer, RetryPolicy, Sent};
use tokio::process::Command;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tower::{ServiceBuilder, ServiceExt};

use crate::proxy::{Faults, Proxy};
use crate::service::Service;

const CHARGES: i64 = 500;
const FAULTS: Faults = Faults { lost: 40, cut: 10, refused: 4 };

fn policy() -> RetryPolicy {
    let pause = Duration::from_millis(5);
    let policy = RetryPolicy::new().pause(pause, 4 * pause).unwrap();
    let policy = policy.deadline(Duration::from_secs(300)).unwrap();
    policy.tries_max(40).unwrap().budget(Budget::new(1000))
}

/// Sends all charges, 16 at a time.
async fn all<F>(charge: impl Fn(String) -> F) -> u32
where
    F: Future<Output = (u16, Sent)> + Send + 'static,
{
    let (mut charges, at_once) = (JoinSet::new(), Arc::new(Semaphore::new(16)));
    for order in 1..=CHARGES {
        let permit = at_once.clone().acquire_owned().await.unwrap();
        let charge = charge(format!("order-{order}"));
        charges.spawn(async move {
            let done = charge.await;
            drop(permit);
            done
        });
    }
    let mut tries = 0;
    while let Some(charge) = charges.join_next().await {
        let (status, sent) = charge.unwrap();
        assert_eq!(status, 201);
        tries += sent.tries;
    }
    tries
}

async fn check(service: &Service, proxy: &Proxy, tries: u32) {
    let (requests, faults, hasty) = {
        let seen = proxy.seen.lock().unwrap();
        (seen.requests, seen.faults, seen.hasty)
    };
    eprintln!("{CHARGES} charges, {faults} faults, {requests} requests");
    assert_eq!(service.wrong(CHARGES).await, 0, "none doubled, none lost");
    assert_eq!(hasty, 0, "no request came before its Retry-After");
    assert_eq!(tries, requests);
    let most = 1.3 * (CHARGES as f64 + f64::from(faults));
    assert!(f64::from(requests) <= most, "{requests} requests; at most {most}");
    assert!(faults > 200, "the network must be bad");
}

#[tokio::test]
async fn reqwest_doubles_none_and_loses_none() {
    let service = Service::start().await;
    let proxy = Proxy::start(service.address.clone(), FAULTS).await;
    let http = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0);
    let client = pgonce_client::client(http, policy()).unwrap();
    let url = format!("http://{}/charges", proxy.address);
    let tries = all(|order| {
        let charge = client.post(&url).body(order).send();
        async {
            let charge = charge.await.unwrap();
            (charge.status().as_u16(), *charge.extensions().get().unwrap())
        }
    });
    check(&service, &proxy, tries.await).await;
}

#[tokio::test]
async fn tower_doubles_none_and_loses_none() {
    let service = Service::start().await;
    let proxy = Proxy::start(service.address.clone(), FAULTS).await;
    let http = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build_http();
    let client = ServiceBuilder::new().layer(RetryLayer::new(policy())).service(http);
    let url = format!("http://{}/charges", proxy.address);
    let tries = all(|order| {
        let request = http::Request::post(&url).body(Full::new(Bytes::from(order))).unwrap();
        let charge = client.clone().oneshot(request);
        async {
            let (parts, body) = charge.await.unwrap().into_parts();
            assert!(body.collect().await.unwrap().to_bytes().starts_with(b"charge "));
            (parts.status.as_u16(), *parts.extensions.get().unwrap())
        }
    });
    check(&service, &proxy, tries.await).await;
}

/// A client that is not ours, with its own keys and retries.
#[tokio::test]
async fn stripe_node_doubles_none_and_loses_none() {
    let service = Service::start().await;
    let proxy = Proxy::start(service.address.clone(), Faults { refused: 0, ..FAULTS }).await;
    let (host, port) = proxy.address.split_once(':').unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/node/charge.mjs");
    let mut node = Command::new("node");
    let output = node.args([script, host, port, &CHARGES.to_string()]).output().await.unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert_eq!(printed, "all charged\n", "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(service.wrong(CHARGES).await, 0, "none doubled, none lost");
    assert!(proxy.seen.lock().unwrap().faults > 200, "the network must be bad");
}
