//! The README shows code that runs.

use pgonce::{Operation, RunError};

use crate::support::db::TestDb;

#[allow(dead_code, reason = "the example is a program of its own")]
#[path = "../../examples/quickstart.rs"]
mod quickstart;

use quickstart::{Request, pay, pay_in_steps, prepare};

fn shown() -> impl Iterator<Item = &'static str> {
    let blocks = include_str!("../../README.md").split("```rust,ignore\n").skip(1);
    blocks.map(|block| block.split("```").next().unwrap())
}

#[test]
fn the_readme_shows_the_examples_own_lines() {
    let example = include_str!("../../examples/quickstart.rs");
    assert_eq!(shown().count(), 3);
    for shown in shown() {
        assert!(is_in(shown, example), "not in the example:\n{shown}");
    }
}

/// Whether these lines occur consecutively in the program, at any indentation.
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
    prepare(&db.pool).await.unwrap();
    let request = Request { account: "alice".to_owned(), amount: 100 };
    let first = pay(&db.pool, &db.once, "order-17", &request).await.unwrap();
    let retry = pay(&db.pool, &db.once, "order-17", &request).await.unwrap();
    assert_eq!(first, retry);
    let other = Request { account: "mallory".to_owned(), amount: 999 };
    let refused = pay(&db.pool, &db.once, "order-17", &other).await;
    assert!(matches!(refused, Err(RunError::Mismatch(_))));
    assert_eq!(db.ask::<i64>("select count(*) from {}.quickstart_payment").await, 1);
    let op = Operation::new("acme/payments.create", "in steps").unwrap();
    let first = pay_in_steps(&db.pool, &db.once, op.clone(), &request).await.unwrap();
    let retry = pay_in_steps(&db.pool, &db.once, op, &request).await.unwrap();
    assert_eq!(first, retry);
    assert_eq!(db.ask::<i64>("select count(*) from {}.quickstart_payment").await, 2);
}
