//! The program, as people and scripts use it.

use std::process::Stdio;
use std::time::Duration;

use pgonce::Response;
use serde_json::Value;
use tokio::io::AsyncWriteExt;

use crate::support::db::{TestDb, op, psql, server};

const MINUTE: Duration = Duration::from_secs(60);

pub struct Output {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|_| panic!("not JSON: {}", self.stdout))
    }
}

/// Runs the program on the test's database and schema, with an empty standard input.
pub async fn pgonce(db: &TestDb, args: &[&str]) -> Output {
    pgonce_with(db, args, &[]).await
}

/// With these environment variables in addition.
pub async fn pgonce_with(db: &TestDb, args: &[&str], variables: &[(&str, &str)]) -> Output {
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_pgonce"))
        .args(args)
        .env("DATABASE_URL", server().await.url())
        .env("PGONCE_SCHEMA", &db.schema)
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap();
    Output {
        code: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

#[tokio::test]
async fn migrate_and_check_bring_the_schema_up_to_date() {
    let db = TestDb::new().await;
    db.execute("drop schema {} cascade").await;
    let missing = pgonce(&db, &["check", "--json"]).await;
    assert_eq!(missing.code, 5);
    assert_eq!(missing.json()["error"]["kind"], "schema_outdated");
    let created = pgonce(&db, &["migrate", "--json"]).await;
    assert_eq!((created.code, created.json()["from"].as_u64()), (0, Some(0)));
    assert_eq!(pgonce(&db, &["migrate"]).await.code, 0);
    assert_eq!(pgonce(&db, &["check"]).await.code, 0);
    db.execute(
        "create or replace function {}.schema_version(out version integer, out serves_from integer, out digest text)
           language sql as $$ select 999, 999, 'future' $$",
    )
    .await;
    let newer = pgonce(&db, &["check"]).await;
    assert_eq!(newer.code, 5);
    assert!(newer.stderr.contains("999") && newer.stderr.lines().count() == 1, "{}", newer.stderr);
}

#[tokio::test]
async fn the_printed_migration_is_the_librarys() {
    let db = TestDb::new().await;
    let printed = pgonce(&db, &["migrate", "--print"]).await;
    assert_eq!(printed.stdout, db.once.migration_sql());
}

#[tokio::test]
async fn a_printed_migration_does_nothing_to_a_schema_that_is_up_to_date() {
    let db = TestDb::new().await;
    let printed = pgonce(&db, &["migrate", "--print"]).await.stdout;
    let mut psql = psql()
        .await
        .args(["-X", "-v", "ON_ERROR_STOP=1", "-d", &server().await.url()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    psql.stdin.take().unwrap().write_all(printed.as_bytes()).await.unwrap();
    let ended = psql.wait_with_output().await.unwrap();
    let said = String::from_utf8(ended.stderr).unwrap();
    assert!(ended.status.success() && said.contains("nothing was done"), "{said}");
}

#[tokio::test]
async fn migrations_leave_no_notices_in_the_log_of_a_start() {
    // A new database, where each DDL statement raises a notice.
    let db = TestDb::in_new_database().await;
    db.execute(
        "create function public.say() returns event_trigger language plpgsql as
           $$ begin raise notice 'does not exist, skipping'; end $$;
         create event trigger say on ddl_command_end execute function public.say()",
    )
    .await;
    let name = db.options.get_database().unwrap();
    let url = server().await.url().replace("/postgres?", &format!("/{name}?"));
    for says in ["created", "is up to date"] {
        let variables = [("RUST_LOG", "info"), ("DATABASE_URL", url.as_str())];
        let migrated = pgonce_with(&db, &["migrate"], &variables).await;
        assert!(migrated.stdout.contains(says), "{} {}", migrated.stdout, migrated.stderr);
        assert_eq!(migrated.stderr, "");
    }
}

#[tokio::test]
async fn a_key_can_be_looked_at_without_its_body_and_with_it() {
    let db = TestDb::new().await;
    db.complete(&op("order 17"), "the body").await;
    let shown = pgonce(&db, &["get", "test/scope", "order 17"]).await;
    assert_eq!(shown.code, 0);
    assert!(shown.stdout.contains("completed") && !shown.stdout.contains("the body"));
    let json = pgonce(&db, &["get", "test/scope", "order 17", "--json"]).await.json();
    assert_eq!((&json["status"], &json["attempt"]), (&"completed".into(), &1.into()));
    let body = pgonce(&db, &["get", "test/scope", "order 17", "--body", "-"]).await;
    assert_eq!((body.code, body.stdout.as_str()), (0, "the body"));
    assert_eq!(pgonce(&db, &["get", "test/scope", "order 18"]).await.code, 3);
    assert_eq!(pgonce(&db, &["get", "test/scope", " "]).await.code, 2);
}

#[tokio::test]
async fn lists_and_stats_count_what_is_there() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    db.complete(&op("done"), "x").await;
    drop(db.lease(&op("lapsed"), MINUTE).await);
    db.advance(MINUTE).await;
    drop(db.lease(&op("live"), MINUTE).await);
    let keys = |listed: Value| -> Vec<String> {
        let listed = listed.as_array().unwrap();
        listed.iter().map(|row| row["key"].as_str().unwrap().to_owned()).collect()
    };
    let list = |args: &'static [&'static str]| {
        let db = &db;
        async move { keys(pgonce(db, args).await.json()) }
    };
    assert_eq!(list(&["list", "--json"]).await, ["done", "lapsed", "live"]);
    assert_eq!(list(&["list", "--json", "--status", "completed"]).await, ["done"]);
    assert_eq!(list(&["list", "--json", "--claim", "lapsed"]).await, ["lapsed"]);
    assert_eq!(list(&["list", "--json", "--abandoned"]).await, ["lapsed"]);
    assert_eq!(list(&["list", "--json", "--limit", "1"]).await, ["done"]);
    assert!(list(&["list", "--json", "--scope", "other"]).await.is_empty());
    let stats = pgonce(&db, &["stats", "--json"]).await.json();
    for (count, expected) in [("live", 1), ("lapsed", 1), ("completed", 1), ("failed", 0)] {
        assert_eq!(stats[count], expected, "{count} in {stats}");
    }
}

#[tokio::test]
async fn release_asks_first_and_is_fenced() {
    let db = TestDb::new().await;
    let claim = db.lease(&op("k"), MINUTE).await;
    let asked = pgonce(&db, &["release", "test/scope", "k"]).await;
    assert_eq!(asked.code, 4, "not confirmed");
    assert!(asked.stderr.contains("--yes"), "{}", asked.stderr);
    assert_eq!(pgonce(&db, &["release", "test/scope", "k", "--yes"]).await.code, 0);
    let lost = claim.complete(&mut db.conn().await, Response::empty()).await.unwrap_err();
    assert_eq!(lost.kind(), pgonce::ErrorKind::ClaimLost);
    assert_eq!(pgonce(&db, &["release", "test/scope", "k", "--yes"]).await.code, 4, "already");
    assert_eq!(pgonce(&db, &["release", "test/scope", "unknown", "--yes"]).await.code, 3);
    assert_eq!(db.lease(&op("k"), MINUTE).await.attempt(), 2);
}

#[tokio::test]
async fn reap_deletes_what_is_overdue() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    db.complete(&op("old"), "x").await;
    db.advance(Duration::from_secs(86_400)).await;
    db.complete(&op("new"), "x").await;
    let reaped = pgonce(&db, &["reap", "--json"]).await.json();
    assert_eq!((&reaped["deleted"], &reaped["backlog"]), (&1.into(), &0.into()));
    assert_eq!(reaped["cut_short"], false);
    assert!(reaped["keys_per_second"].as_u64() > Some(0), "{reaped}");
    assert_eq!(db.ask::<String>("select string_agg(key, ',') from {}.keys").await, "new");
}

#[tokio::test]
async fn the_demo_proves_itself_for_ten_seeds() {
    let db = TestDb::new().await;
    for seed in 1..=10 {
        let seed = seed.to_string();
        let args =
            ["demo", "--json", "--clients", "32", "--payments", "200", "--seed", seed.as_str()];
        let demo = pgonce(&db, &args).await;
        assert_eq!(demo.code, 0, "seed {seed}: {}", demo.stderr);
        let json = demo.json();
        let (without, with) = (&json["unprotected"], &json["protected"]);
        assert!(without["doubles"].as_u64() > Some(0), "seed {seed}: {json}");
        assert_eq!((&with["doubles"], &with["lost"]), (&0.into(), &0.into()), "seed {seed}");
        assert_eq!((&with["requested"], &with["charged"]), (&200.into(), &200.into()));
        for figure in ["replays", "in_progress", "p50_ms", "p99_ms"] {
            assert!(with[figure].is_number() && without[figure].is_number(), "{figure}");
        }
    }
    let left: i64 =
        db.ask("select count(*) from pg_namespace where nspname like 'pgonce\\_demo%'").await;
    assert_eq!(left, 0, "the demo cleans up");
}

#[tokio::test]
async fn wrong_usage_and_unreachable_databases_are_told_in_one_line() {
    let db = TestDb::new().await;
    for args in [
        &["demo", "--clients", "0"][..],
        &["demo", "--loss", "2"],
        &["demo", "--payments", "0"],
        &["list", "--status", "done"],
        &["--schema", "Bad Name", "check"],
        &["explode"],
    ] {
        let output = pgonce(&db, args).await;
        assert_eq!(output.code, 2, "{args:?}: {}", output.stderr);
        let mut json = args.to_vec();
        json.push("--json");
        let output = pgonce(&db, &json).await;
        assert_eq!(
            (output.code, &output.json()["error"]["kind"].is_string()),
            (2, &true),
            "{args:?}"
        );
    }
    let url = "postgres://user:canary7f3a@127.0.0.1:1/nowhere";
    let output = pgonce(&db, &["--database-url", url, "check"]).await;
    assert_eq!(output.code, 1);
    assert_eq!(output.stderr.lines().count(), 1, "{}", output.stderr);
    assert!(!output.stderr.contains("canary7f3a"), "the password is not shown");
}

#[tokio::test]
async fn doctor_prints_what_check_finds() {
    let db = TestDb::new().await;
    let well = pgonce(&db, &["doctor"]).await;
    assert_eq!(well.code, 0, "{}", well.stderr);
    let url = format!("{}&options=-c%20default_transaction_deferrable%3Don", server().await.url());
    let with = [("DATABASE_URL", url.as_str())];
    let ill = pgonce_with(&db, &["doctor"], &with).await;
    let finding = "ERROR  default_transaction_deferrable is on";
    assert!(
        ill.code == 1 && ill.stdout.lines().any(|line| line.starts_with(finding)),
        "{}",
        ill.stdout
    );
    let json = pgonce_with(&db, &["check", "--json"], &with).await;
    assert_eq!((json.code, &json.json()["error"]["kind"]), (1, &"environment".into()));
}
