//! The quick form against a real PostgreSQL and a real Redis.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::process::{Command, Output};

use serde_json::Value;

fn run(arguments: &[&str]) -> String {
    let Output { status, stdout, stderr } =
        Command::new(env!("CARGO_BIN_EXE_peers")).args(arguments).output().unwrap();
    assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

#[test]
fn the_table_is_complete() {
    let text = run(&["--quick"]);
    let rows: Vec<Vec<&str>> = text
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"))
        .map(|line| line.split(" | ").collect())
        .collect();
    assert_eq!(rows.len(), 1 + 8, "{text}");
    for row in &rows {
        assert_eq!(row.len(), 9, "{text}");
        assert!(row.iter().all(|cell| !cell.trim().is_empty()), "{text}");
    }
    let holes = rows.iter().flatten().filter(|cell| **cell == "–").count();
    assert_eq!(holes, 1, "only the bare transaction has no replays: {text}");
}

#[test]
fn who_must_not_pay_twice_does_not_and_who_is_unprotected_does() {
    let text = run(&["--quick", "--json", "--seed", "7"]);
    let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let row =
        |name: &str| rows.iter().find(|row| row["peer"].as_str().unwrap().contains(name)).unwrap();
    let number = |value: &Value| value.as_i64().unwrap();

    for protected in ["PgOnce", "zero to production", "unique constraint"] {
        let row = row(protected);
        for loss in ["doubles", "stuck", "missing"] {
            assert_eq!(number(&row[loss]), 0, "{loss}: {row}");
        }
        // All of the others got what the first one got.
        let others = &row["others"];
        assert_eq!((number(&others["conflicts"]), number(&others["doubles"])), (0, 0), "{row}");
        assert!(number(&others["answers"]) > 0, "{row}");
    }

    // The kills hit: otherwise the zeros above say nothing.
    let bare = row("bare transaction");
    assert!(number(&bare["doubles"]) > 0, "{bare}");
    assert_eq!(number(&bare["others"]["answers"]), 0, "{bare}");
    assert!(number(&bare["others"]["doubles"]) > 0, "{bare}");
    // A lock that ran out with its process lets the payment be made again.
    let locks = rows.iter().filter(|row| row["peer"].as_str().unwrap().contains("Redis"));
    let doubles: Vec<i64> = locks.map(|row| number(&row["doubles"])).collect();
    assert!(doubles.len() == 4 && doubles.iter().sum::<i64>() > 0, "{doubles:?}");
    // What one does not wait for is a 409.
    assert!(number(&row("everysec")["others"]["conflicts"]) > 0);
    assert_eq!(number(&row("polling")["others"]["conflicts"]), 0);

    for row in &rows {
        // Nobody here answers before the commit.
        assert_eq!(number(&row["missing"]), 0, "{row}");
        assert_eq!((number(&row["seed"]), number(&row["rounds"])), (7, 1), "{row}");
        for ratio in ["fresh_8", "fresh_32", "at_once_16"] {
            assert!(row["ratio_to_bare"][ratio].as_f64().unwrap() > 0.0, "{ratio}: {row}");
        }
    }
}

#[test]
fn without_redis_it_says_how_to_install_it() {
    let command = Command::new(env!("CARGO_BIN_EXE_peers")).env("PATH", "/nowhere").output();
    let Output { status, stderr, .. } = command.unwrap();
    let said = String::from_utf8(stderr).unwrap();
    assert!(!status.success() && said.contains("apt-get install redis-server"), "{said}");
}
