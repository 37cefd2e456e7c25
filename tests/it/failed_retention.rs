//! A failure that is kept may be forgotten sooner than its key would be.

use std::time::Duration;

use pgonce::{Begin, Failure, Operation, Policy, Response, RunError, Work};
use sqlx::PgConnection;

use crate::support::db::{TestDb, effect, lasting, op, started};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

fn declined() -> Response {
    Response::bytes("declined")
}

fn brief(key: &str) -> Operation {
    op(key).policy(Policy::new().retention(HOUR).unwrap().failed_retention(MINUTE).unwrap())
}

/// How the work of an operation fails for good.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Run,
    /// Over the row of a claim that has lapsed.
    RunOverARow,
    RunLeased,
    Verb,
    LeasedVerb,
}

async fn fail(db: &TestDb, op: &Operation, way: Way) {
    let refuse = async |tx: &mut PgConnection| {
        effect(tx, &db.schema, "undone").await?;
        Err::<(), _>(Failure::keep(declined()))
    };
    match way {
        Way::Run | Way::RunOverARow => {
            let run = db.once.run(&db.pool, op, refuse).await;
            assert!(matches!(run, Err(RunError::Failed { replayed: false, .. })), "{run:?}");
        }
        Way::RunLeased => {
            let work = async |_: &mut Work| Err::<(), _>(Failure::keep(declined()));
            let run = db.once.run_leased(&db.pool, op, lasting(MINUTE), work).await;
            assert!(matches!(run, Err(RunError::Failed { replayed: false, .. })), "{run:?}");
        }
        Way::Verb => {
            let mut tx = db.pool.begin().await.unwrap();
            let claim = started(db.once.begin(&mut tx, op).await.unwrap());
            claim.fail(&mut tx, declined()).await.unwrap();
            tx.commit().await.unwrap();
        }
        Way::LeasedVerb => {
            let begin = db.once.begin_leased(&db.pool, op, lasting(MINUTE)).await.unwrap();
            started(begin).fail_leased(&db.pool, declined()).await.unwrap();
        }
    }
}

#[tokio::test]
async fn every_way_to_keep_a_failure_forgets_it_in_time() {
    for way in [Way::Run, Way::RunOverARow, Way::RunLeased, Way::Verb, Way::LeasedVerb] {
        let db = TestDb::new().await;
        db.stop_clock().await;
        let op = brief("k");
        if way == Way::RunOverARow {
            drop(db.lease(&op, MINUTE).await);
            db.advance(MINUTE).await;
        }
        fail(&db, &op, way).await;
        db.advance(MINUTE - Duration::from_millis(1)).await;
        let run = db.once.run(&db.pool, &op, async |_| Ok::<_, sqlx::Error>(7)).await;
        assert!(matches!(run, Err(RunError::Failed { replayed: true, .. })), "{way:?}: {run:?}");
        db.advance(Duration::from_millis(1)).await;
        let run = db.once.run(&db.pool, &op, async |_| Ok::<_, sqlx::Error>(7)).await.unwrap();
        assert!(!run.is_replay(), "{way:?}: it runs again");
        // A success is remembered for the key's whole retention.
        db.advance(HOUR - Duration::from_millis(1)).await;
        let run = db.once.run(&db.pool, &op, async |_| Ok::<_, sqlx::Error>(8)).await.unwrap();
        assert_eq!((run.is_replay(), *run), (true, 7), "{way:?}");
    }
}

// Counted from its end: work that takes longer than the failure is remembered is not forgotten while it runs.
#[tokio::test]
async fn it_counts_from_when_the_failure_is_kept_and_never_beyond_the_keys_retention() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    let expires = "select extract(epoch from expires_at - created_at)::bigint
                   from {}.idempotency_keys";
    let begin = db.once.begin_leased(&db.pool, &brief("k"), lasting(HOUR)).await.unwrap();
    let claim = started(begin);
    db.advance(10 * MINUTE).await;
    claim.fail_leased(&db.pool, declined()).await.unwrap();
    assert_eq!(db.ask::<i64>(expires).await, 11 * 60);
    db.execute("delete from {}.idempotency_keys").await;
    let long = Policy::new().retention(MINUTE).unwrap().failed_retention(HOUR).unwrap();
    for way in [Way::Run, Way::Verb] {
        fail(&db, &op("k").policy(long), way).await;
        assert_eq!(db.ask::<i64>(expires).await, 60, "{way:?}");
        db.execute("delete from {}.idempotency_keys").await;
    }
}

#[tokio::test]
async fn sql_takes_it_within_its_limits() {
    let db = TestDb::new().await;
    let mut conn = db.conn().await;
    let Begin::Started(claim) = db.once.begin(&mut conn, &op("k")).await.unwrap() else {
        panic!("it is new")
    };
    for bad in ["0", "-1", "315576000001"] {
        let call = format!(
            "select {}.fail('test/scope', 'k', '{}', p_retention_ms => {bad})",
            db.schema,
            claim.token()
        );
        let error = sqlx::query(sqlx::AssertSqlSafe(call)).execute(&mut conn).await.unwrap_err();
        let error = error.as_database_error().unwrap();
        assert_eq!(error.code().unwrap(), "IK001");
        assert!(error.message().starts_with(&format!("retention_ms is {bad}; it takes 1 to")));
    }
    claim.fail(&mut conn, declined()).await.unwrap();
}
