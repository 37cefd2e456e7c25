//! The closure form under a lease: steps, takeovers, and every kind of end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use pgonce::{ErrorKind, Failure, Lease, Operation, Response};
use pgonce::{RunError, Step, Work};
use tokio::sync::Notify;

use crate::support::db::{PATIENCE, TestDb, effect, kept_for, lasting, op};

fn lease() -> Lease {
    Lease::new(Duration::from_secs(60)).unwrap()
}

fn short() -> Lease {
    Lease::new(Duration::from_millis(300)).unwrap()
}

/// Makes the claim lapse, as if its holder had been silent for long.
async fn lapse(db: &TestDb) {
    db.execute("update {}.idempotency_keys set lease_expires_at = {}._clock() - interval '1 s'")
        .await;
}

/// Runs the operation and stops it, like a crash, once `work` has signalled its place.
async fn crashes<F>(db: &TestDb, op: &Operation, work: F)
where
    F: AsyncFnOnce(&mut Work, &Notify) -> Result<(), Failure>,
{
    let there = Notify::new();
    let run = db.once.run_leased(&db.pool, op, lease(), async |held: &mut Work| {
        work(held, &there).await?;
        std::future::pending::<Result<(), Failure>>().await
    });
    tokio::select! {
        ended = run => panic!("it ended: {ended:?}"),
        () = there.notified() => {}
    }
    lapse(db).await;
}

#[tokio::test]
async fn leased_work_runs_once_and_is_replayed() {
    let db = TestDb::with_connections(1).await;
    let once = db.once.clone();
    let (pool, schema) = (db.pool.clone(), db.schema.clone());
    // In another task: the future is `Send`.
    let run = async move |ending: &'static str| {
        let op = op("k");
        once.run_leased(&pool, &op, lease(), async |work: &mut Work| {
            assert_eq!(work.attempt(), 1);
            let tx = work.last_tx().await?;
            effect(tx, &schema, "k").await?;
            Ok::<_, Failure>(ending.to_owned())
        })
        .await
    };
    let (first, retry) =
        tokio::spawn(async move { (run("first").await, run("retry").await) }).await.unwrap();
    let (first, retry) = (first.unwrap(), retry.unwrap());
    assert!(!first.is_replay() && retry.is_replay());
    assert_eq!((&*first, &*retry), (&"first".to_owned(), &"first".to_owned()));
    assert_eq!(db.effects().await, 1);
}

#[tokio::test]
async fn a_step_that_is_done_is_not_done_again_after_a_crash() {
    let db = TestDb::new().await;
    let op = op("k");
    let calls = AtomicU32::new(0);
    let key = op.derived_key("charge");
    crashes(&db, &op, async |work, there| {
        let receipt = work.step("charge", async || {
            calls.fetch_add(1, Ordering::Relaxed);
            Ok::<_, Failure>(work_key(&key))
        });
        assert_eq!(receipt.await?, key.as_str());
        let id = work.step_tx("ledger", async |tx| effect(tx, &db.schema, "ledger").await).await?;
        assert_eq!(id, 1);
        there.notify_one();
        Ok(())
    })
    .await;
    let done = db.once.run_leased(&db.pool, &op, lease(), async |work: &mut Work| {
        assert_eq!(work.attempt(), 2);
        assert_eq!(work.derived_key("charge"), key, "the same in every attempt");
        let charge = async || -> Result<String, Failure> { panic!("it is done") };
        let receipt = work.step("charge", charge).await?;
        let ledger =
            async |_: &mut sqlx::PgConnection| -> Result<i64, Failure> { panic!("it too") };
        let id = work.step_tx("ledger", ledger).await?;
        let mailed = work.step("mail", async || Ok::<_, Failure>(true)).await?;
        Ok::<_, Failure>((receipt, id, mailed))
    });
    assert_eq!(done.await.unwrap().into_inner(), (key.as_str().to_owned(), 1, true));
    assert_eq!((calls.load(Ordering::Relaxed), db.effects().await), (1, 1));
    let names: String = db.ask("select string_agg(name, ' ' order by number) from {}.steps").await;
    assert_eq!(names, "charge ledger mail");
}

fn work_key(key: &pgonce::Key) -> String {
    key.as_str().to_owned()
}

/// Runs a second attempt after a first that recorded one step, made from `1`, with output 7.
async fn after_one_step<F>(second: F) -> (RunError<Failure>, TestDb)
where
    F: AsyncFnOnce(&mut Work, &AtomicU32) -> Result<(), Failure>,
{
    let db = TestDb::new().await;
    let op = op("k");
    crashes(&db, &op, async |work, there| {
        let step = Step::new("charge").made_from(&1)?;
        work.step(step, async || Ok::<_, Failure>(7)).await?;
        there.notify_one();
        Ok(())
    })
    .await;
    let calls = AtomicU32::new(0);
    let run = db
        .once
        .run_leased(&db.pool, &op, lease(), async |work: &mut Work| second(work, &calls).await);
    let error = run.await.unwrap_err();
    assert_eq!(calls.load(Ordering::Relaxed), 0, "nothing was done");
    (error, db)
}

#[tokio::test]
async fn steps_that_changed_are_an_error_and_never_another_steps_value() {
    let made = |from: i32| Step::new("charge").made_from(&from).unwrap();
    let mut told = Vec::new();
    for case in 0..5 {
        let (error, _db) = after_one_step(async |work, calls| {
            let count = async || {
                calls.fetch_add(1, Ordering::Relaxed);
                Ok::<_, Failure>(8)
            };
            let text = async || Ok::<_, Failure>("eight".to_owned());
            let mut call = async || match case {
                0 => work.step("payment", count).await.map(drop), // renamed
                1 => work.step(made(2), count).await.map(drop),   // made from another value
                2 => work.step("charge", count).await.map(drop),  // made from no value
                3 => work.step(made(1), text).await.map(drop),    // another type
                _ => work.step(made(1), count).await.map(drop),   // named twice
            };
            assert_eq!(call().await.is_ok(), case == 4);
            call().await // the same, asked again
        })
        .await;
        let RunError::Protocol(error) = error else { panic!("{case}: {error:?}") };
        assert_eq!(error.kind(), ErrorKind::StepChanged, "{case}");
        assert!(!error.is_retryable());
        told.push(error.to_string());
    }
    told.dedup();
    assert_eq!(told.len(), 4, "{told:?}");
}

#[tokio::test]
async fn steps_that_are_recorded_are_found_by_name_in_any_order() {
    let db = TestDb::new().await;
    let op = op("k");
    crashes(&db, &op, async |work, there| {
        work.step("seat", async || Ok::<_, Failure>(1)).await?;
        work.step("charge", async || Ok::<_, Failure>(2)).await?;
        there.notify_one();
        Ok(())
    })
    .await;
    let done = db.once.run_leased(&db.pool, &op, lease(), async |work: &mut Work| {
        let done = async || -> Result<i32, Failure> { panic!("it is done") };
        let charge = work.step("charge", done).await?;
        // A new step is refused: the recorded ones come first.
        let early = work.step("mail", async || Ok::<_, Failure>(3)).await.unwrap_err();
        let early = early.error().and_then(|error| error.downcast_ref::<pgonce::Error>());
        assert_eq!(early.map(pgonce::Error::kind), Some(ErrorKind::StepChanged));
        let seat = work.step("seat", done).await?;
        let mail = work.step("mail", async || Ok::<_, Failure>(3)).await?;
        Ok::<_, Failure>((seat, charge, mail))
    });
    assert_eq!(*done.await.unwrap(), (1, 2, 3));
}

#[tokio::test]
async fn a_step_that_failed_may_be_tried_again() {
    let db = TestDb::new().await;
    let mut tries = 0;
    let op = op("k");
    let done = db.once.run_leased(&db.pool, &op, lease(), async |work: &mut Work| {
        let step = loop {
            tries += 1;
            let fails = tries < 3;
            let result = work.step_tx("pay", async |tx| {
                effect(tx, &db.schema, "pay").await?;
                if fails { Err(Failure::from("not now")) } else { Ok(tries) }
            });
            if let Ok(step) = result.await {
                break step;
            }
        };
        Ok::<_, Failure>(step)
    });
    assert_eq!(*done.await.unwrap(), 3);
    assert_eq!(db.effects().await, 1);
}

#[tokio::test]
async fn a_holder_that_lost_its_claim_can_write_nothing_while_the_next_one_works() {
    let db = TestDb::new().await;
    let op = op("k");
    for act in ["step", "step_tx", "last_tx", "progress", "end", "keep", "fail"] {
        db.execute("delete from {}.steps; delete from {}.idempotency_keys; delete from {}.effect")
            .await;
        let mut other = None;
        let run = db.once.run_leased(&db.pool, &op, lease(), async |work: &mut Work| {
            lapse(&db).await;
            // In progress, like the lost claim: only the token differs.
            other = Some(db.lease(&op, Duration::from_secs(60)).await);
            match act {
                "step" => work.step("late", async || Ok::<_, Failure>(())).await?,
                "step_tx" => {
                    work.step_tx("late", async |tx| effect(tx, &db.schema, "late").await).await?;
                }
                "last_tx" => drop(effect(work.last_tx().await?, &db.schema, "late").await?),
                "progress" => work.progress("late").await?,
                "keep" => return Err(Failure::keep(Response::bytes("late"))),
                "fail" => return Err(Failure::from("late")),
                _ => {}
            }
            Ok("the loser's".to_owned())
        });
        match (act, run.await.unwrap_err()) {
            ("fail", RunError::Work { .. }) => {}
            (_, RunError::Protocol(error)) => {
                assert_eq!(error.kind(), ErrorKind::ClaimLost, "{act}");
                assert!(!error.is_retryable() && RunError::<Failure>::from(error).is_retryable());
            }
            (_, error) => panic!("{act}: {error:?}"),
        }
        let untouched =
            "select every(status = 1 and attempt = 2 and steps is null and progress is null
                                  and last_error is null and lease_expires_at > {}._clock())
                           from {}.idempotency_keys";
        assert!(db.ask::<bool>(untouched).await, "{act}");
        assert_eq!(db.ask::<i64>("select count(*) from {}.steps").await, 0, "{act}");
        assert_eq!(db.effects().await, 0, "{act}");
        let winners = Response::json(&"the winner's").unwrap();
        other.unwrap().complete(&mut db.conn().await, winners).await.unwrap();
        let retry = db.once.run_leased(&db.pool, &op, lease(), async |_: &mut Work| {
            Ok::<_, Failure>(String::new())
        });
        assert_eq!(*retry.await.unwrap(), "the winner's", "{act}");
    }
}

/// Notifies when it is dropped.
struct Dropped(Arc<Notify>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

#[tokio::test]
async fn work_is_stopped_when_its_claim_is_lost() {
    let db = TestDb::new().await;
    let (begun, stopped) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let run = tokio::spawn({
        let (once, pool) = (db.once.clone(), db.pool.clone());
        let (begun, dropped) = (Arc::clone(&begun), Dropped(Arc::clone(&stopped)));
        async move {
            once.run_leased(&pool, &op("k"), short(), async |_: &mut Work| {
                let _dropped = dropped;
                begun.notify_one();
                std::future::pending::<Result<(), Failure>>().await
            })
            .await
        }
    });
    begun.notified().await;
    // Between two heartbeats the claim may lapse and be taken over here.
    let mut conn = db.conn().await;
    loop {
        lapse(&db).await;
        let begin = db
            .once
            .begin_leased(&db.pool, &op("k"), lasting(Duration::from_secs(60)))
            .await
            .unwrap();
        if let pgonce::Begin::Started(claim) = begin {
            claim.complete(&mut conn, Response::json(&()).unwrap()).await.unwrap();
            break;
        }
    }
    tokio::time::timeout(PATIENCE, stopped.notified()).await.expect("stopped");
    let error = run.await.unwrap().unwrap_err();
    assert!(
        matches!(&error, RunError::Protocol(e) if e.kind() == ErrorKind::ClaimLost),
        "{error:?}"
    );
}

#[tokio::test]
async fn twenty_at_once_with_two_connections_lose_no_lease() {
    let db = TestDb::with_connections(2).await;
    let mut runs = tokio::task::JoinSet::new();
    for number in 0..20 {
        let (once, pool, schema) = (db.once.clone(), db.pool.clone(), db.schema.clone());
        runs.spawn(async move {
            let key = format!("k{number}");
            once.run_leased(&pool, &op(&key), short(), async |work: &mut Work| {
                // Many leases long, while the tasks compete for the pool.
                for step in 0..10 {
                    let name = format!("step {step}");
                    work.step_tx(name.as_str(), async |tx| {
                        sqlx::query("select pg_sleep(0.01)").execute(&mut *tx).await?;
                        effect(tx, &schema, &key).await
                    })
                    .await?;
                }
                Ok::<_, Failure>(())
            })
            .await
        });
    }
    while let Some(run) = runs.join_next().await {
        run.unwrap().unwrap();
    }
    assert_eq!(db.effects().await, 200);
    let taken_over: i64 =
        db.ask("select count(*) from {}.idempotency_keys where attempt > 1 or status <> 2").await;
    assert_eq!(taken_over, 0);
}

#[tokio::test]
async fn steps_end_with_their_key() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    let hour = Duration::from_secs(3600);
    let run = async |key: &str| {
        let op = op(key).policy(kept_for(hour));
        db.once
            .run_leased(&db.pool, &op, lease(), async |work: &mut Work| {
                let attempt = work.attempt();
                work.step("charge", async || Ok::<_, Failure>(attempt)).await
            })
            .await
            .unwrap()
    };
    run("reaped").await;
    run("forgotten").await;
    db.advance(hour).await;
    // Forgotten, and begun again in the old row: the step runs again.
    assert!(!run("forgotten").await.is_replay());
    assert_eq!(db.ask::<i64>("select count(*) from {}.steps").await, 2);
    let reaped = db.once.reap_once(&mut db.conn().await, 100).await.unwrap();
    assert_eq!(reaped.deleted, 1);
    assert_eq!(db.ask::<String>("select string_agg(key, ',') from {}.steps").await, "forgotten");
}
