//! Procedures commit by themselves, with each transaction at READ COMMITTED, whatever the session's default is.

use std::time::Duration;

use pgonce::{Failure, Inbox, Lease, Response, Verdict, Work};
use sqlx::postgres::PgPoolOptions;
use tokio::task::JoinSet;

use crate::isolation::LEVELS;
use crate::support::db::{TestDb, lasting, op, started};

const MINUTE: Duration = Duration::from_secs(60);
const PROCEDURES: [&str; 12] = [
    "begin_leased",
    "commit_step",
    "complete_leased",
    "count_attempt",
    "extend_leases",
    "fail_leased",
    "lapse_leased",
    "pick_abandoned",
    "reap",
    "record_history",
    "release_leased",
    "report_progress",
];

/// A body's statements, without comments and blanks.
fn statements(body: &str) -> Vec<String> {
    let lines = body.lines().map(|line| line.split("--").next().unwrap_or_default());
    let text = lines.collect::<Vec<_>>().join(" ");
    let statements =
        text.split(';').map(|one| one.split_whitespace().collect::<Vec<_>>().join(" "));
    statements.filter(|one| !one.is_empty()).collect()
}

#[tokio::test]
async fn every_transaction_of_a_procedure_begins_at_read_committed() {
    let db = TestDb::new().await;
    let found: Vec<(String, bool, bool, String)> = sqlx::query_as(db.sql(
        "select proname::text, proconfig is not null, prosecdef, prosrc from pg_proc
          where pronamespace = '{}'::regnamespace and prokind = 'p' order by 1",
    ))
    .fetch_all(&db.pool)
    .await
    .unwrap();
    let names: Vec<_> = found.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(names, PROCEDURES);
    for (name, has_settings, is_definer, body) in &found {
        assert!(!has_settings, "{name}: COMMIT is refused under a SET clause");
        assert!(!is_definer, "{name}: COMMIT is refused under SECURITY DEFINER");
        let statements = statements(body);
        let caught = statements.iter().any(|one| one.contains("exception when"));
        assert!(!caught, "{name}: COMMIT is refused in a block that catches");
        // The first COMMIT may follow `begin`; a loop's block begins with `loop`.
        let is_commit = |one: &&String| *one == "commit" || one.ends_with(" commit");
        let commits: Vec<usize> =
            (0..statements.len()).filter(|&n| is_commit(&&statements[n])).collect();
        assert!(commits.len() >= 2, "{name} begins and ends with COMMIT: {statements:?}");
        let works = |text: &str| {
            let verbs = ["select", "perform", "insert", "update", "delete", "call"];
            text.split_whitespace().any(|word| verbs.contains(&word))
        };
        let before = &statements[..=commits[0]].join(" ");
        assert!(!works(before), "{name} works before: {before}");
        for &commit in &commits[..commits.len() - 1] {
            let next = &statements[commit + 1];
            assert_eq!(next, "set transaction isolation level read committed", "{name}");
        }
        let last = *commits.last().unwrap();
        let after = &statements[last + 1..].join(" ");
        assert!(!works(after), "{name} works after: {after}");
        if after.contains("end loop") {
            assert_eq!(statements[last + 1], "set transaction isolation level read committed");
        }
    }
}

/// All calls of a caller with its own key, without competition: none may fail in favor of another transaction.
async fn calls(db: &TestDb, pool: &sqlx::PgPool, key: &str) -> Result<(), pgonce::Error> {
    let mut claim = started(db.once.begin_leased(pool, &op(key), lasting(MINUTE)).await?);
    claim.extend(pool, lasting(MINUTE)).await?;
    claim.complete_leased(pool, Response::bytes(key)).await?;
    let released =
        started(db.once.begin_leased(pool, &op(&format!("{key} r")), lasting(MINUTE)).await?);
    released.release_leased(pool).await?;
    let failed =
        started(db.once.begin_leased(pool, &op(&format!("{key} f")), lasting(MINUTE)).await?);
    failed.fail_leased(pool, Response::empty()).await?;
    let lease = Lease::new(MINUTE)?;
    let run_op = op(&format!("{key} run"));
    let run = db.once.run_leased(pool, &run_op, lease, async |work: &mut Work| {
        work.step("one", async || Ok::<_, Failure>(1)).await?;
        work.progress(&1).await?;
        work.step("two", async || Ok::<_, Failure>(2)).await
    });
    run.await.map_err(|error| match error {
        pgonce::RunError::Protocol(error) => error,
        other => panic!("{other:?}"),
    })?;
    let inbox = Inbox::new(&db.once, "orders").unwrap();
    let verdict = inbox.failed(pool, key, "it failed").await?;
    assert!(matches!(verdict, Verdict::Retry(_)), "{verdict:?}");
    sqlx::query(db.sql("call {}.pick_abandoned('nothing/%')")).execute(pool).await.unwrap();
    Ok(())
}

#[tokio::test]
async fn calls_on_different_keys_give_no_serialization_failure_at_any_default_level() {
    for level in LEVELS {
        let db = std::sync::Arc::new(TestDb::new().await);
        let options = db.options.clone().options([("default_transaction_isolation", level)]);
        let pool = PgPoolOptions::new().max_connections(20).connect_lazy_with(options);
        let mut callers = JoinSet::new();
        for caller in 0..16 {
            let (db, pool) = (db.clone(), pool.clone());
            callers.spawn(async move {
                for round in 0..4 {
                    let key = format!("{caller} {round}");
                    calls(&db, &pool, &key).await.unwrap_or_else(|e| panic!("{level}: {e:?}"));
                }
            });
        }
        db.plant_overdue(400, 0).await;
        for _ in 0..2 {
            let (db, pool) = (db.clone(), pool.clone());
            callers.spawn(async move {
                let mut conn = pool.acquire().await.unwrap();
                for _ in 0..50 {
                    db.once.reap_once(&mut conn, 5).await.expect(level);
                }
            });
        }
        while let Some(ended) = callers.join_next().await {
            ended.unwrap();
        }
        let done: i64 = db.ask("select count(*) from {}.keys where status = 'completed'").await;
        assert_eq!(done, 16 * 4 * 2, "{level}");
        let attempts: i64 = db.ask("select count(*) from {}.keys where scope = 'orders'").await;
        assert_eq!(attempts, 64, "{level}");
        let planted: i64 = db.ask("select count(*) from {}.keys where scope = 'planted'").await;
        assert_eq!(planted, 0, "{level}");
    }
}
