//! What the README shows is what runs.

use pgonce::RunError;

use crate::support::db::TestDb;

#[allow(dead_code, reason = "the example is a program of its own")]
#[path = "../../examples/quickstart.rs"]
mod quickstart;

use quickstart::{Request, pay, prepare};

/// The README's Rust blocks that are lines of an example.
fn shown() -> Vec<&'static str> {
    let readme = include_str!("../../README.md");
    let section = |title: &str| {
        let (_, rest) = readme.split_once(title).unwrap();
        rest.split("\n## ").next().unwrap()
    };
    let blocks = |text: &'static str, count: usize| {
        let blocks = text.split("```rust,ignore\n").skip(1).take(count);
        let blocks = blocks.map(|block| block.split("```").next().unwrap()).collect::<Vec<_>>();
        assert_eq!(blocks.len(), count, "{text}");
        blocks
    };
    [blocks(section("## Ten lines"), 1), blocks(section("## HTTP"), 3)].concat()
}

#[test]
fn the_readme_shows_the_examples_own_lines() {
    let examples = [
        include_str!("../../examples/quickstart.rs"),
        include_str!("../../examples/payments/api.rs"),
        include_str!("../../examples/payments/payments.rs"),
    ];
    for shown in shown() {
        let there = examples.iter().any(|example| is_in(shown, example));
        assert!(there, "in no example:\n{shown}");
    }
}

/// Whether lines follow each other in a program, however deep they are there.
fn is_in(lines: &str, program: &str) -> bool {
    let trimmed = |text: &'_ str| text.lines().map(|l| l.trim().to_owned()).collect::<Vec<_>>();
    let (lines, program) = (trimmed(lines), trimmed(program));
    program.windows(lines.len()).any(|window| window == lines)
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
