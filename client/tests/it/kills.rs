//! A client that is killed with signal 9 between sending and reading, and anywhere else.

use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};

use crate::proxy::{Faults, Proxy};
use crate::service::Service;

const NONE: Faults = Faults { lost: 0, cut: 0, refused: 0 };

fn start(url: &str, file: &std::path::Path, orders: u32) -> Child {
    let test = std::env::current_exe().unwrap();
    let charger = test.ancestors().nth(2).unwrap().join("examples/charger");
    Command::new(charger)
        .arg(url)
        .arg(file)
        .arg(orders.to_string())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("cargo test builds the examples")
}

/// Runs it to its end.
async fn finishes(url: &str, file: &std::path::Path, orders: u32) {
    let output = start(url, file, orders).wait_with_output().await.unwrap();
    assert!(output.status.success());
    assert_eq!(output.stdout, b"all charged\n");
}

#[tokio::test]
async fn a_client_that_is_killed_before_it_reads_uses_the_same_key_after_its_restart() {
    let service = Service::start().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("intents.jsonl");
    let lost = Proxy::start(service.address.clone(), Faults { lost: 100, ..NONE }).await;
    let mut child = start(&format!("http://{}/charges", lost.address), &file, 1);
    while service.number("select count(*) from charge").await == 0 {}
    child.kill().await.unwrap();
    finishes(&format!("http://{}/charges", service.address), &file, 1).await;
    assert_eq!(service.wrong(1).await, 0);
    assert_eq!(service.number("select count(*) from pgonce.keys").await, 1, "one key");
}

#[tokio::test]
async fn a_client_that_is_killed_a_hundred_times_doubles_none_and_forgets_none() {
    const ORDERS: u32 = 400;
    let service = Service::start().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("intents.jsonl");
    let url = format!("http://{}/charges", service.address);
    let seed = std::env::var("SEED").map_or_else(|_| fastrand::u64(..), |it| it.parse().unwrap());
    eprintln!("SEED={seed}");
    let mut dice = fastrand::Rng::with_seed(seed);
    let mut killed = 0;
    while killed < 100 {
        let before = service.number("select count(*) from charge").await;
        let mut child = start(&url, &file, ORDERS);
        // It is at work when it charges; then any moment may be its last.
        while service.number("select count(*) from charge").await == before {
            assert!(child.try_wait().unwrap().is_none(), "killed {killed} times; take more orders");
        }
        tokio::time::sleep(Duration::from_micros(dice.u64(0..6_000))).await;
        child.kill().await.unwrap();
        killed += 1;
    }
    finishes(&url, &file, ORDERS).await;
    assert_eq!(service.wrong(i64::from(ORDERS)).await, 0);
}
