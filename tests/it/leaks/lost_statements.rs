//! Connections whose prepared statements a pooler or the work has dropped.

use std::time::Duration;

use pgonce::{Failure, Inbox, Lease, Message, Response, RunError, Verdict, Work};
use sqlx::PgPool;

use super::{leave, pool};
use crate::crash::{effects_of, pay};
use crate::support::db::{TestDb, effect, lasting, op, started};

const LEASE: Duration = Duration::from_secs(60);
const LOST: [&str; 2] = ["discard all", "deallocate all"];

fn lease() -> Lease {
    Lease::new(LEASE).unwrap()
}

/// Every call on a claim, with statements that were prepared before and are lost.
#[tokio::test]
async fn procedures_go_on_with_another_connection() {
    let db = TestDb::new().await;
    let pool = pool(&db);
    for lost in ["", LOST[0], LOST[1]] {
        let leave = async || leave(&db, &pool, lost).await;
        for end in ["completed", "failed", "released"] {
            let key = format!("{lost} {end}");
            leave().await;
            let mut claim =
                started(db.once.begin_leased(&pool, &op(&key), lasting(LEASE)).await.expect(&key));
            leave().await;
            claim.extend(&pool, lasting(LEASE)).await.expect(&key);
            leave().await;
            match end {
                "completed" => claim.complete_leased(&pool, Response::empty()).await,
                "failed" => claim.fail_leased(&pool, Response::empty()).await,
                _ => claim.release_leased(&pool).await,
            }
            .expect(&key);
        }
    }
}

#[tokio::test]
async fn run_goes_on_with_another_connection() {
    let db = TestDb::new().await;
    let pool = pool(&db);
    pay(&db, &pool, "before").await.unwrap();
    pay(&db, &pool, "before").await.unwrap();
    for lost in LOST {
        for again in [false, true] {
            leave(&db, &pool, lost).await;
            assert_eq!(pay(&db, &pool, lost).await.expect(lost).is_replay(), again);
        }
        assert_eq!(effects_of(&db, lost).await, 1);
    }
}

/// Makes both kinds of writes, and prepares what they need.
async fn write(
    db: &TestDb,
    pool: &PgPool,
    key: &str,
    lost: &str,
) -> Result<u32, RunError<Failure>> {
    let op = op(key);
    let run = db.once.run_leased(pool, &op, lease(), async |work: &mut Work| {
        let write = async |tx: &mut sqlx::PgConnection| {
            let step = format!("{key} step");
            effect(tx, &db.schema, &step).await.map(drop)
        };
        leave(db, pool, lost).await;
        if let Err(failure) = work.step_tx("step", write).await {
            assert_eq!(sqlstate(&failure), "26000", "{key}");
            work.step_tx("step", write).await?; // on another connection
        }
        leave(db, pool, lost).await;
        let tx = work.last_tx().await?;
        effect(tx, &db.schema, key).await?;
        Ok::<_, Failure>(work.attempt())
    });
    run.await.map(pgonce::Done::into_inner)
}

fn sqlstate(failure: &Failure) -> String {
    let error = failure.error().expect("an error");
    match error.downcast_ref::<sqlx::Error>() {
        Some(driver) => driver.as_database_error().unwrap().code().unwrap().into_owned(),
        None => error.downcast_ref::<pgonce::Error>().unwrap().sqlstate().unwrap(),
    }
}

// BEGIN is no prepared statement: the loss shows at the first statement after it.
#[tokio::test]
async fn a_transaction_on_such_a_connection_fails_whole_and_the_next_one_is_on_another() {
    let db = TestDb::new().await;
    let pool = pool(&db);
    assert_eq!(write(&db, &pool, "before", "").await.unwrap(), 1);
    for lost in LOST {
        // The first attempt tried the step twice; the last writes took two attempts.
        assert_eq!(write(&db, &pool, &format!("{lost} twice"), "").await.unwrap(), 1);
        let error = write(&db, &pool, lost, lost).await.unwrap_err();
        assert!(matches!(&error, RunError::Work { .. }), "{lost}: {error:?}");
        assert_eq!(effects_of(&db, lost).await, 0, "{lost}");
        assert_eq!(effects_of(&db, &format!("{lost} step")).await, 1, "{lost}: its second try");
        assert_eq!(write(&db, &pool, lost, "").await.unwrap(), 2);
        assert_eq!(effects_of(&db, lost).await, 1, "{lost}");
        assert_eq!(effects_of(&db, &format!("{lost} step")).await, 1, "{lost}");
    }
}

// The work's statements were prepared after the loss, pgonce's were not.
#[tokio::test]
async fn an_end_that_is_refused_on_such_a_connection_says_why_and_is_done_again() {
    let db = TestDb::new().await;
    let pool = pool(&db);
    let op = op("k");
    for (attempt, lost) in [(1, LOST[1]), (2, "select 1")] {
        let prepare = db.lease(&crate::support::db::op(lost), LEASE).await;
        let mut conn = pool.acquire().await.unwrap();
        prepare.complete(&mut conn, Response::empty()).await.unwrap();
        conn.return_to_pool().await;
        let run = db.once.run_leased(&pool, &op, lease(), async |work: &mut Work| {
            let tx = work.last_tx().await?;
            sqlx::raw_sql(lost).execute(&mut *tx).await?;
            effect(tx, &db.schema, "k").await?;
            Ok::<_, Failure>(work.attempt())
        });
        match run.await {
            Ok(done) => assert_eq!((*done, attempt), (2, 2)),
            Err(RunError::Protocol(error)) if attempt == 1 => {
                assert_eq!(error.sqlstate().as_deref(), Some("26000"));
                assert!(error.to_string().contains("prepared statement"), "{error}");
            }
            Err(error) => panic!("{error:?}"),
        }
        assert_eq!(effects_of(&db, "k").await, i64::from(attempt == 2));
    }
}

#[tokio::test]
async fn the_steps_of_an_earlier_attempt_and_the_state_of_a_message_are_read_on_another_connection()
{
    let db = TestDb::new().await;
    let pool = pool(&db);
    let inbox = Inbox::new(&db.once, "orders").unwrap();
    for (round, lost) in ["", LOST[0], LOST[1]].into_iter().enumerate() {
        let op = op(&format!("k{round}"));
        for attempt in 1..=2 {
            let run = db.once.run_leased(&pool, &op, lease(), async |work: &mut Work| {
                leave(&db, &pool, lost).await;
                let value = work.step("s", async || Ok::<_, Failure>(attempt)).await?;
                assert_eq!(value, 1, "{lost}: done once");
                Err::<(), _>(Failure::from("it failed"))
            });
            assert!(matches!(run.await, Err(RunError::Work { .. })), "{lost}");
        }
        let message = Message::new(format!("m{round}"));
        let handled = inbox.handle(&pool, &message, async |tx: &mut sqlx::PgConnection| {
            sqlx::raw_sql(sqlx::AssertSqlSafe(lost.replace("discard", "deallocate")))
                .execute(tx)
                .await?;
            Err::<(), _>(Failure::from("it failed"))
        });
        let verdict = handled.await.verdict;
        assert!(matches!(verdict, Verdict::Retry(_)), "{lost}: {verdict:?}");
    }
}
