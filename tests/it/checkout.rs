//! `examples/checkout.rs` prints what happens.

use std::process::Stdio;

use sqlx::ConnectOptions;
use tokio::process::Command;

use crate::support::db::PATIENCE;
use crate::support::db::TestDb;
use crate::support::example::example;

/// The story's lines, without process ids.
async fn story() -> Vec<String> {
    let db = TestDb::in_new_database().await;
    let telling = Command::new(example("checkout"))
        .env("DATABASE_URL", db.options.to_url_lossy().as_str())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(PATIENCE, telling).await.expect("the story ends").unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{errors}");
    let told = String::from_utf8(output.stdout).unwrap();
    told.lines()
        .map(|line| line.split_once("] ").map_or(line, |(_, said)| said).trim().to_owned())
        .filter(|line| !line.is_empty())
        .collect()
}

#[tokio::test]
async fn the_checkout_example_is_killed_half_way_and_charges_once() {
    let story = story().await;
    let essential = [
        "has the claim (attempt 1)",
        "reserve: done",
        "charge: calls the provider",
        "charge: the card is charged; kill -9 before this is recorded",
        "The first process is dead (signal: 9 (SIGKILL)). The customer has paid and got nothing.",
        "has the claim (attempt 2)",
        "reserve: skipped, already recorded",
        "charge: calls the provider",
        "charge: done, with receipt 1",
        "mail: done",
        "finished",
        "already done: gets the stored receipt",
        "stock: 10 before, 9 left",
        "charge: requested twice with one key, done once",
        "mail: requested once with one key, done once",
        "order: paid once",
    ];
    let told = story.iter().filter(|line| essential.contains(&line.as_str())).collect::<Vec<_>>();
    assert_eq!(told, essential, "{story:#?}");
}
