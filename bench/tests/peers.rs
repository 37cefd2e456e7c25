//! The scenarios that need redis-server, in tiny runs.

#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use std::process::{Command, Output};

use serde_json::Value;

fn bench(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pgonce-bench"));
    command.args(args).env_remove("DATABASE_URL").output().unwrap()
}

fn outcome(args: &[&str]) -> Value {
    let Output { status, stdout, stderr } = bench(args);
    assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
    serde_json::from_slice(&stdout).unwrap()
}

#[test]
fn redis_locks_are_measured_beside_the_others() {
    let tiny = ["--rounds", "1", "--seconds", "0.1", "--clients", "4", "--counted", "10", "--json"];
    let rows = &outcome(&[&["peers"], &tiny[..]].concat())["variants"];
    for name in
        ["bare", "hand-written", "run", "run, optimistic", "Redis, everysec", "Redis, always"]
    {
        assert!(rows[name]["ops_per_s"].as_f64().unwrap() > 0.0, "{name}: {rows}");
    }
}

#[test]
fn who_must_not_double_does_not_and_who_is_unprotected_does() {
    let outcome = outcome(&["kills", "--check", "--json"]);
    let rows = &outcome["variants"];
    let doubles = |name: &str| rows[name]["doubles"].as_u64().unwrap();
    for protected in ["hand-written", "run", "run, optimistic"] {
        assert_eq!(doubles(protected), 0, "{protected}");
    }
    assert_eq!(outcome["figures"]["lost"], 0, "{outcome}");
    assert_eq!(outcome["goals"].as_array().unwrap().len(), 3, "{outcome}");
    // The kills hit: otherwise the zeros say nothing.
    assert!(doubles("bare") > 0, "{rows}");
    // A lock that ran out with its process lets the order be taken again.
    assert!(doubles("Redis, everysec") + doubles("Redis, always") > 0, "{rows}");
}
