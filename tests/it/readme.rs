//! What the README shows is what runs.

use pgonce::RunError;

use crate::harness::TestDb;

#[allow(dead_code, reason = "the example is a program of its own")]
#[path = "../../examples/quickstart.rs"]
mod quickstart;

use quickstart::{Request, pay, prepare};

#[test]
fn the_readme_shows_the_examples_own_lines() {
    let readme = include_str!("../../README.md");
    let (_, rest) = readme.split_once("```rust,ignore\n").unwrap();
    let (shown, _) = rest.split_once("```").unwrap();
    let program = include_str!("../../examples/quickstart.rs");
    assert!(program.contains(shown), "not in examples/quickstart.rs:\n{shown}");
}

#[tokio::test]
async fn the_readme_example_pays_once() {
    let db = TestDb::new().await;
    let options = db.options.clone().options([("search_path", db.schema.as_str())]);
    let db = TestDb::open(&db.schema, options, 5).await;
    prepare(&db.pool, &db.once).await.unwrap();
    let request = Request { account: "alice".to_owned(), amount: 100 };
    let first = pay(&db.pool, &db.once, "order-17", &request).await.unwrap();
    let retry = pay(&db.pool, &db.once, "order-17", &request).await.unwrap();
    assert_eq!(first, retry);
    let other = Request { account: "mallory".to_owned(), amount: 999 };
    let refused = pay(&db.pool, &db.once, "order-17", &other).await;
    assert!(matches!(refused, Err(RunError::Mismatch(_))));
    assert_eq!(db.ask::<i64>("select count(*) from {}.quickstart_payment").await, 1);
}
