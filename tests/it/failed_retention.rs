//! A failure that is kept may be forgotten sooner than its key would be.

use std::time::Duration;

use pgonce::{Begin, Failure, Inbox, Message, Operation, Policy, Response, RunError, Work};
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

// A begin after that would repeat them.
#[tokio::test]
async fn a_key_with_steps_keeps_its_retention() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    for again in [false, true] {
        let op = brief("k");
        let run = db.once.run_leased(&db.pool, &op, lasting(MINUTE), async |work: &mut Work| {
            work.step_tx("reserve", async |tx| effect(tx, &db.schema, "k").await).await?;
            Err::<(), _>(Failure::keep(declined()))
        });
        let error = run.await.unwrap_err();
        let RunError::Failed { replayed, .. } = error else { panic!("{error:?}") };
        assert_eq!(replayed, again);
        db.advance(2 * MINUTE).await;
    }
    assert_eq!(db.effects().await, 1);
}

// There the failure is kept by the work's own transaction, which began before the work.
#[tokio::test]
async fn it_counts_from_when_the_failure_is_kept_at_serializable_too() {
    let db = TestDb::new().await;
    let serializable = [("default_transaction_isolation", "serializable")];
    let pool = sqlx::PgPool::connect_with(db.options.clone().options(serializable)).await.unwrap();
    let op = brief("k");
    let run = db.once.run(&pool, &op, async |tx| {
        sqlx::query("select pg_sleep(0.2)").execute(tx).await?;
        Err::<(), _>(Failure::keep(declined()))
    });
    assert!(matches!(run.await, Err(RunError::Failed { replayed: false, .. })));
    let counted =
        "select expires_at - created_at between interval '1 min 200 ms' and interval '2 min'
                   from {}.idempotency_keys";
    assert!(db.ask::<bool>(counted).await);
}

#[tokio::test]
async fn an_inbox_is_judged_by_what_it_has_done() {
    let db = TestDb::new().await;
    let policy = Policy::inbox().failed_retention(MINUTE).unwrap();
    let inbox = Inbox::new(&db.once, "orders").unwrap().policy(policy).unwrap();
    let week = Duration::from_secs(7 * 86_400);
    for (id, fails) in [("one", false), ("two", true)] {
        let message = Message::new(id).redelivered(false);
        let handled = inbox.handle(&db.pool, &message, async |_| match fails {
            true => Err(Failure::keep(declined())),
            false => Ok(()),
        });
        handled.await;
        let remembers = inbox.remembers(&mut db.conn().await).await.unwrap();
        assert_eq!(remembers, Some(week), "{id}");
    }
    assert!(inbox.clone().outlasts(MINUTE).is_ok());
    assert!(inbox.outlasts(HOUR).is_err(), "a dead message would run again");
}
