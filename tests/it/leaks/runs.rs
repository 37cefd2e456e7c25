//! Leased work, with the pool left in this state before everything it does.

use std::time::Duration;

use pgonce::{Done, Failure, Lease, Response, RunError, Work};
use sqlx::PgPool;

use super::{LEAKS, drop_begin, leave, nothing_is_left, pool};
use crate::crash::effects_of;
use crate::support::db::{TestDb, effect, op};

#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    WithLastWrites,
    WithoutLastWrites,
    Kept,
    GivenUp,
}

const ENDS: [End; 4] = [End::WithLastWrites, End::WithoutLastWrites, End::Kept, End::GivenUp];

async fn run(
    db: &TestDb,
    pool: &PgPool,
    key: &str,
    end: End,
    leave: impl AsyncFn(),
) -> Result<Done<u32>, RunError<Failure>> {
    let lease = Lease::new(Duration::from_secs(60)).unwrap();
    leave().await;
    let op = op(key);
    let work = async |work: &mut Work| {
        let seen = format!("select count(*) from {{}}.keys where claim = 'live' and key = '{key}'");
        assert_eq!(db.ask::<i64>(&seen).await, 1, "{key}: the claim is committed");
        leave().await; // in a later attempt, before the steps are read
        work.step("outside", async || {
            leave().await; // before its record
            Ok::<_, Failure>(())
        })
        .await?;
        let steps = format!("select count(*) from {{}}.steps where key = '{key}'");
        assert!(db.ask::<i64>(&steps).await >= 1, "{key}: the step is committed");
        leave().await;
        let in_database = async |tx: &mut sqlx::PgConnection| {
            effect(tx, &db.schema, &format!("{key} step")).await.map(drop)
        };
        work.step_tx("inside", in_database).await?;
        assert_eq!(effects_of(db, &format!("{key} step")).await, 1, "{key}");
        assert_eq!(db.ask::<i64>(&steps).await, 2, "{key}: the step is committed");
        leave().await;
        work.progress("half way").await?;
        let said = format!(
            "select count(*) from {{}}.idempotency_keys where progress is not null and key = '{key}'"
        );
        assert_eq!(db.ask::<i64>(&said).await, 1, "{key}: the progress is committed");
        leave().await;
        match end {
            End::WithLastWrites => {
                let tx = work.last_tx().await?;
                effect(tx, &db.schema, key).await?;
                Ok(work.attempt())
            }
            End::WithoutLastWrites => Ok(work.attempt()),
            End::Kept => Err(Failure::keep(Response::bytes("declined"))),
            End::GivenUp => Err(Failure::from("it failed")),
        }
    };
    db.once.run_leased(pool, &op, lease, work).await
}

async fn every_end(db: &TestDb, pool: &PgPool, how: &str, leave: impl AsyncFn() + Copy) {
    for end in ENDS {
        let key = format!("{how}, {end:?}");
        let told = run(db, pool, &key, end, leave).await;
        let state = format!("select coalesce(claim, status) from {{}}.keys where key = '{key}'");
        let state: String = db.ask(&state).await;
        match end {
            End::WithLastWrites | End::WithoutLastWrites => {
                assert_eq!(*told.unwrap_or_else(|error| panic!("{key}: {error:?}")), 1, "{key}");
                assert_eq!(state, "completed", "{key}");
            }
            End::Kept => {
                assert!(matches!(told, Err(RunError::Failed { replayed: false, .. })), "{key}");
                assert_eq!(state, "failed", "{key}");
            }
            End::GivenUp => {
                assert!(matches!(told, Err(RunError::Work { .. })), "{key}: {told:?}");
                assert_eq!(state, "lapsed", "{key}");
                // It continues, and repeats neither step.
                let again = run(db, pool, &key, End::WithLastWrites, leave).await;
                assert_eq!(*again.unwrap_or_else(|error| panic!("{key}: {error:?}")), 2);
            }
        }
        let written = i64::from(matches!(end, End::WithLastWrites | End::GivenUp));
        assert_eq!(effects_of(db, &key).await, written, "{key}");
        nothing_is_left(db, &key).await;
    }
}

#[tokio::test]
async fn whatever_leased_work_is_told_is_committed() {
    let db = TestDb::new().await;
    for (how, leak) in LEAKS {
        let pool = pool(&db);
        every_end(&db, &pool, how, &async || leave(&db, &pool, leak).await).await;
    }
}

#[tokio::test]
async fn whatever_leased_work_is_told_is_committed_behind_a_begin_that_was_dropped() {
    let db = TestDb::new().await;
    let pool = pool(&db);
    every_end(&db, &pool, "a dropped begin", &async || drop_begin(&db, &pool).await).await;
}
