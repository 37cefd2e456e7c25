//! `pgonce bench`: tiny runs, whose figures mean little but must be there.

use std::process::Stdio;

use serde_json::Value;

use crate::cli::pgonce;
use crate::harness::TestDb;

/// As little work as the options allow.
const TINY: [&str; 14] = [
    "bench",
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

const FIGURES: [&str; 12] = [
    "ops_per_s",
    "p50_ms",
    "p99_ms",
    "ratio_to_bare",
    "ratio_to_hand_written",
    "ratio_to_floor",
    "round_trips",
    "wal_bytes_per_op",
    "dead_rows_per_op",
    "xids_per_op",
    "doubles",
    "spread",
];

/// One object for each line.
fn lines(stdout: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(stdout).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}")))
        .collect()
}

fn all_figures_are_there(object: &Value) {
    for figure in FIGURES {
        assert!(object.get(figure).is_some(), "no {figure} in {object}");
    }
    for field in ["scenario", "clients", "figures", "goals", "machine", "delay_ms", "rounds"] {
        assert!(!object[field].is_null(), "no {field} in {object}");
    }
    assert!(object["ops_per_s"].as_f64() > Some(0.0), "{object}");
    assert_eq!(object["spread"]["ops_per_s"].as_array().map(Vec::len), Some(2), "{object}");
}

fn round_trips(object: &Value, variant: &str) -> f64 {
    object["variants"][variant]["round_trips"].as_f64().unwrap()
}

#[tokio::test]
async fn every_scenario_has_its_figures_and_a_place_in_the_report() {
    let folder = tempfile::tempdir().unwrap();
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_pgonce"))
        .args(TINY)
        .args(["all", "--report"])
        .arg(folder.path())
        .env_remove("DATABASE_URL")
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.stderr, b"", "no bars where nobody looks");
    let objects = lines(&output.stdout);
    let scenarios: Vec<_> =
        objects.iter().map(|object| object["scenario"].as_str().unwrap()).collect();
    let all =
        ["fresh", "replay", "mixed", "hot", "leased", "inbox", "http", "reap", "churn", "scale"];
    assert_eq!(scenarios, [&all[..1], &all].concat(), "fresh comes a second time, from afar");
    for object in &objects {
        all_figures_are_there(object);
        let retried = ["fresh", "replay", "mixed", "hot", "leased"];
        if retried.contains(&object["scenario"].as_str().unwrap()) {
            assert_eq!(object["doubles"], 0, "{object}");
        }
    }
    let (fresh, replay, hot, leased) = (&objects[0], &objects[2], &objects[4], &objects[5]);
    assert_eq!([&fresh["delay_ms"], &objects[1]["delay_ms"]], [0.0, 1.0]);
    let ways = ["bare", "hand-written", "floor"];
    assert_eq!(ways.map(|way| round_trips(fresh, way)), [3.0, 5.0, 3.0]);
    assert_eq!(ways.map(|way| round_trips(replay, way)), [3.0, 4.0, 1.0]);
    assert!(round_trips(leased, "run_leased") > 1.0, "it is no replay: {leased}");
    assert!(fresh["wal_bytes_per_op"].as_f64() > Some(1000.0), "{fresh}");
    let doubles = |object: &Value| object["variants"]["bare"]["doubles"].as_u64().unwrap();
    assert_eq!(doubles(fresh), 0);
    assert!(doubles(hot) > 0, "doubles are counted");

    let page = std::fs::read_to_string(folder.path().join("index.html")).unwrap();
    assert!(page.matches("<svg").count() >= objects.len(), "a plot for each");
    for scenario in all {
        assert!(page.contains(&format!("<h2>{scenario}, ")), "{scenario}");
    }
    assert!(page.contains("<td>benches/peers</td>"), "where the other goals are measured");
    for reference in ["http:", "https:", "src=", "href=", "url(", "@import"] {
        assert!(!page.contains(reference), "the page needs nothing else: {reference}");
    }
}

#[tokio::test]
async fn a_database_that_was_named_is_left_as_it_was() {
    let db = TestDb::new().await;
    let output = pgonce(&db, &[&TINY[..], &["fresh", "--delay-ms", "4"]].concat()).await;
    assert_eq!(output.code, 0, "{}", output.stdout);
    let fresh = output.json();
    all_figures_are_there(&fresh);
    assert!(fresh["wal_bytes_per_op"].is_null(), "others write there too");
    assert_eq!(round_trips(&fresh, "bare"), 3.0);
    for variant in ["bare", "hand-written", "floor", "run"] {
        // Three round trips, and one to see whether the pooled connection is alive.
        let p50 = fresh["variants"][variant]["p50_ms"].as_f64().unwrap();
        assert!(p50 >= 4.0 * 4.0 - 0.1, "{variant}: {p50}");
    }
    let left = "select count(*) from pg_namespace where nspname like 'pgonce\\_bench%'";
    assert_eq!(db.ask::<i64>(left).await, 0);
}

#[tokio::test]
async fn people_get_a_table_that_says_what_to_look_at() {
    let db = TestDb::new().await;
    let args = [&TINY[..TINY.len() - 1], &["mixed"]].concat();
    let output = pgonce(&db, &args).await;
    assert_eq!((output.code, output.stderr.as_str()), (0, ""));
    for words in ["PostgreSQL", "## mixed, 2 clients\n", "Look at run", "| hand-written ", " met |"]
    {
        assert!(output.stdout.contains(words), "no {words} in {}", output.stdout);
    }
}

#[tokio::test]
async fn options_out_of_range_are_told_with_their_limits() {
    let db = TestDb::new().await;
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
        let output = pgonce(&db, &[&["bench"], args].concat()).await;
        assert_eq!(output.code, 2, "{args:?}: {}", output.stderr);
        for word in words {
            assert!(output.stderr.contains(word), "no {word} in {}", output.stderr);
        }
    }
}
