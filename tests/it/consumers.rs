//! `examples/consumers.rs` counts correctly.

use std::process::{Output, Stdio};

use pgonce_testing::{Options, Throwaway};
use sqlx::ConnectOptions;
use tokio::process::Command;

use crate::support::db::{PATIENCE, TestDb};
use crate::support::example::example;

async fn compare(db: &TestDb) -> (Output, String) {
    let seed = fastrand::u64(..1_000_000).to_string();
    println!("seed {seed}");
    let comparing = Command::new(example("consumers"))
        .args(["--seed", &seed])
        .env("DATABASE_URL", db.options.to_url_lossy().as_str())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    // Minutes on a busy machine: it starts more than a hundred processes.
    let output = tokio::time::timeout(4 * PATIENCE, comparing).await.expect("it ends").unwrap();
    let told = String::from_utf8(output.stdout.clone()).unwrap();
    println!("{told}{}", String::from_utf8_lossy(&output.stderr));
    (output, told)
}

/// A row of the table: the recipe's number and pgonce's.
fn row(told: &str, name: &str) -> [i64; 2] {
    let numbers = told.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix("  "));
    let numbers = numbers.unwrap().split_whitespace().map(|number| number.parse().unwrap());
    numbers.collect::<Vec<_>>().try_into().unwrap()
}

#[tokio::test]
async fn killed_consumers_double_effects_by_the_recipe_and_none_by_pgonce() {
    // Durable, like the example's server: this leaves more time between two commits for a kill.
    let server = Throwaway::start(&Options::new()).await.unwrap();
    let db = TestDb::open("pgonce", server.connect_options(), 2).await;
    let (output, told) = compare(&db).await;
    assert!(output.status.success());
    assert!(output.stderr.is_empty());
    let [by_recipe, by_pgonce] = row(&told, "doubles");
    let [of_two, _] = row(&told, "  where two consumers had it at once");
    assert!(of_two > 0 && by_recipe > of_two, "both ways to a double");
    assert_eq!(by_pgonce, 0);
    assert_eq!(row(&told, "lost"), [0, 0]);
    let [messages, _] = row(&told, "messages");
    assert_eq!(row(&told, "effects"), [messages + by_recipe, messages]);
    assert!(row(&told, "consumers killed").iter().all(|killed| *killed >= 20));
    assert!(row(&told, "deliveries").iter().all(|deliveries| *deliveries > messages));
    assert!(told.ends_with("With pgonce, all 2000 messages took effect once.\n"));

    for (side, doubles) in [("recipe", by_recipe), ("pgonce", by_pgonce)] {
        let count = format!(
            "select array[count(distinct message), count(*) - count(distinct message)]
               from consumers_example.effect where side = '{side}'"
        );
        assert_eq!(db.ask::<Vec<i64>>(&count).await, [messages, doubles], "{side}");
    }
    let received = "select count(*) from {}.idempotency_keys where status = 2";
    assert_eq!(db.ask::<i64>(received).await, messages);
}

#[tokio::test]
async fn the_comparison_fails_when_pgonce_does() {
    let db = TestDb::in_new_database().await;
    db.once.migrate(&mut db.conn().await).await.unwrap();
    // An inbox that forgets a finished message at the commit.
    db.execute(
        "create function {}.forget() returns trigger language plpgsql as
           $$ begin delete from {}.idempotency_keys where key = new.key; return null; end $$;
         create constraint trigger forget after insert or update on {}.idempotency_keys
           deferrable initially deferred for each row when (new.status = 2)
           execute function {}.forget()",
    )
    .await;
    let (output, told) = compare(&db).await;
    assert_eq!(output.status.code(), Some(1));
    let [_, doubles] = row(&told, "doubles");
    assert!(doubles > 0);
    let failed = format!("FAILED: with pgonce, {doubles} double effects and 0 lost messages");
    assert!(told.contains(&failed));
}
