//! The program in tiny runs, whose figures mean little but must be there.

#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use std::process::{Output, Stdio};

use pgonce_testing::{Options, Throwaway};
use serde_json::Value;
use sqlx::{Connection, PgConnection};
use tokio::process::Command;

/// As little work as the options allow.
const TINY: [&str; 13] = [
    "--rounds",
    "1",
    "--seconds",
    "0.05",
    "--clients",
    "2",
    "--counted",
    "10",
    "--keys",
    "1000",
    "--turnovers",
    "4",
    "--json",
];

const FIGURES: [&str; 13] = [
    "ops_per_s",
    "p50_ms",
    "p99_ms",
    "ratio_to_bare",
    "ratio_to_hand_written",
    "client_cpu_us",
    "server_cpu_us",
    "round_trips",
    "wal_bytes_per_op",
    "dead_rows_per_op",
    "xids_per_op",
    "doubles",
    "spread",
];

fn all_figures_are_there(object: &Value) {
    for figure in FIGURES {
        assert!(object.get(figure).is_some(), "no {figure} in {object}");
    }
    for field in ["scenario", "clients", "figures", "goals", "machine", "delay_ms", "rounds"] {
        assert!(!object[field].is_null(), "no {field} in {object}");
    }
    if object["scenario"] == "parts of leased work" {
        return; // it is counted only
    }
    assert!(object["ops_per_s"].as_f64() > Some(0.0), "{object}");
    assert_eq!(object["spread"]["ops_per_s"].as_array().map(Vec::len), Some(2), "{object}");
}

fn round_trips(object: &Value, variant: &str) -> f64 {
    object["variants"][variant]["round_trips"].as_f64().unwrap()
}

fn bench(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pgonce-bench"));
    command.args(args).env_remove("DATABASE_URL").stdin(Stdio::null());
    command
}

fn texts(output: &Output) -> (&str, &str) {
    let text = |bytes| std::str::from_utf8(bytes).unwrap();
    (text(&output.stdout), text(&output.stderr))
}

#[tokio::test]
async fn every_scenario_has_its_figures_and_a_place_in_the_report() {
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().to_str().unwrap();
    let output = bench(&[&TINY[..], &["all", "--report", report]].concat()).output().await.unwrap();
    let (stdout, stderr) = texts(&output);
    assert!(output.status.success(), "{stderr}");
    assert_eq!(stderr, "", "no bars without a terminal");
    let objects: Vec<Value> =
        stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let scenarios: Vec<_> =
        objects.iter().map(|object| object["scenario"].as_str().unwrap()).collect();
    let all = [
        "fresh",
        "replay",
        "mixed",
        "hot",
        "leased",
        "parts of leased work",
        "inbox",
        "http",
        "reap",
        "churn",
        "scale",
    ];
    assert_eq!(scenarios, [&["fresh"; 2], &all[..]].concat(), "fresh comes again from afar");
    for object in &objects {
        all_figures_are_there(object);
        let retried = ["fresh", "replay", "mixed", "hot", "leased"];
        if retried.contains(&object["scenario"].as_str().unwrap()) {
            assert_eq!(object["doubles"], 0, "{object}");
        }
    }
    let (fresh, replay, hot, leased) = (&objects[0], &objects[3], &objects[5], &objects[6]);
    assert_eq!([0, 1, 2].map(|at| objects[at]["delay_ms"].as_f64()), [0.0, 0.25, 1.0].map(Some));
    let ways = ["bare", "hand-written", "run", "run, optimistic"];
    assert_eq!(ways.map(|way| round_trips(fresh, way)), [3.0, 5.0, 5.0, 4.0]);
    assert_eq!(
        ["bare", "hand-written", "run"].map(|way| round_trips(replay, way)),
        [3.0, 4.0, 2.0]
    );
    assert!(round_trips(leased, "run_leased") > 1.0, "it is no replay: {leased}");
    assert!(fresh["wal_bytes_per_op"].as_f64() > Some(1000.0), "{fresh}");
    assert!(fresh["server_cpu_us"].as_f64() > Some(0.0), "{fresh}");
    let doubles = |object: &Value| object["variants"]["bare"]["doubles"].as_u64().unwrap();
    assert_eq!(doubles(fresh), 0);
    assert!(doubles(hot) > 0, "doubles are counted");
    assert_eq!(fresh["goals"], serde_json::json!([]), "without --check");

    let page = std::fs::read_to_string(folder.path().join("index.html")).unwrap();
    assert!(page.matches("<svg").count() >= objects.len() - 1, "a plot for each that is timed");
    for scenario in all {
        assert!(page.contains(&format!("<h2>{scenario}, ")), "{scenario}");
    }
    for reference in ["http:", "https:", "src=", "href=", "url(", "@import"] {
        assert!(!page.contains(reference), "the page needs nothing else: {reference}");
    }
}

#[tokio::test]
async fn a_database_that_was_named_is_left_as_it_was() {
    let server = Throwaway::start(&Options::new()).await.unwrap();
    let output = bench(&[&TINY[..], &["fresh", "--delay-ms", "4"]].concat())
        .env("DATABASE_URL", server.url())
        .output()
        .await
        .unwrap();
    let (stdout, stderr) = texts(&output);
    assert!(output.status.success(), "{stderr}");
    let fresh: Value = serde_json::from_str(stdout).unwrap();
    for missing in ["wal_bytes_per_op", "server_cpu_us"] {
        assert!(fresh[missing].is_null(), "others use that server too");
    }
    assert_eq!(round_trips(&fresh, "bare"), 3.0);
    for variant in ["bare", "hand-written", "run"] {
        let p50 = fresh["variants"][variant]["p50_ms"].as_f64().unwrap();
        assert!(p50 >= 3.0 * 4.0, "{variant}: {p50}");
    }
    let mut conn = PgConnection::connect_with(&server.connect_options()).await.unwrap();
    let left = "select count(*) from pg_namespace where nspname like 'pgonce\\_bench%'";
    let left: i64 = sqlx::query_scalar(left).fetch_one(&mut conn).await.unwrap();
    assert_eq!(left, 0);
    server.stop().await;
}

#[tokio::test]
async fn a_maintainer_is_told_which_goals_are_met() {
    let (asked, tiny) = (["mixed", "--check"], &TINY[..TINY.len() - 1]);
    let output = bench(&[tiny, &asked[..]].concat()).output().await.unwrap();
    let (stdout, stderr) = texts(&output);
    assert!(output.status.success(), "{stdout} {stderr}");
    for words in
        ["PostgreSQL", "## mixed, 2 clients\n", "Look at run", "| hand-written ", "## Goals"]
    {
        assert!(stdout.contains(words), "no {words} in {stdout}");
    }
    let told =
        |line: &str| line.starts_with("| mixed, 2 clients | doubles") && line.contains(" met ");
    assert!(stdout.lines().any(told), "{stdout}");
    // In a run as short as this some are missed and some not: the exit code agrees.
    let output = bench(&[tiny, &["fresh", "--check"][..]].concat()).output().await.unwrap();
    let is_missed = texts(&output).0.contains(" missed |");
    assert_eq!(output.status.code(), Some(i32::from(is_missed)));
}

#[tokio::test]
async fn options_out_of_range_are_told_with_their_limits() {
    for (args, words) in [
        (&["fresh", "--rounds", "0"][..], ["--rounds", "1..=1000"]),
        (&["fresh", "--clients", "8,257"], ["--clients", "1..=256"]),
        (&["fresh", "--seconds", "0"], ["--seconds", "0.05 to 3,600"]),
        (&["fresh", "--delay-ms", "-1"], ["--delay-ms", "0 to 1,000"]),
        (&["fresh", "--counted", "9"], ["--counted", "10..=100000"]),
        (&["churn", "--turnovers", "3"], ["--turnovers", "4..=1000"]),
        (&["scale", "--keys", "999"], ["--keys", "1000..=20000000"]),
        (&["slow"], ["slow", "[possible values: fresh, replay"]),
        (&[], ["SCENARIO", "required"]),
    ] {
        let output = bench(args).output().await.unwrap();
        let (_, stderr) = texts(&output);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
        for word in words {
            assert!(stderr.contains(word), "no {word} in {stderr}");
        }
    }
}

#[tokio::test]
async fn without_redis_it_says_how_to_install_it() {
    let output = bench(&["kills"])
        .env("PATH", "/nowhere")
        .env_remove("RUST_BACKTRACE")
        .output()
        .await
        .unwrap();
    let (_, stderr) = texts(&output);
    assert!(
        !output.status.success() && stderr.contains("apt-get install redis-server"),
        "{stderr}"
    );
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
}
