//! Leased work that fails: what is rolled back, what stays, and who may run it again.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use pgonce::{ErrorKind, Failure, Fingerprint, Lease, OnLapse, Response, RunError, Work};

use crate::support::db::{TestDb, effect, on_lapse, op, tried};

fn lease() -> Lease {
    Lease::new(Duration::from_secs(60)).unwrap()
}

#[tokio::test]
async fn failed_work_may_run_again_and_keeps_its_steps() {
    let db = TestDb::new().await;
    let print = |text: &str| op("k").fingerprint(Fingerprint::of_bytes(text));
    let (ours, others) = (print("100"), print("200"));
    let failing = db.once.run_leased(&db.pool, &ours, lease(), async |work: &mut Work| {
        work.step("charge", async || Ok::<_, Failure>(7)).await?;
        effect(work.last_tx().await?, &db.schema, "undone").await?;
        Err::<(), _>(Failure::from("card number 4242"))
    });
    assert!(matches!(failing.await.unwrap_err(), RunError::Work { .. }));
    assert_eq!(db.effects().await, 0);
    let told: String = db.ask("select last_error from {}.idempotency_keys").await;
    assert_eq!(told, "the work returned an error", "and not what it was about");
    // With a finished step, the key is not free for another request.
    let other =
        db.once.run_leased(&db.pool, &others, lease(), async |_: &mut Work| Ok::<_, Failure>(()));
    assert!(matches!(other.await.unwrap_err(), RunError::Mismatch(_)));
    let again = db.once.run_leased(&db.pool, &ours, lease(), async |work: &mut Work| {
        work.step("charge", async || -> Result<i32, Failure> { panic!("it is done") }).await
    });
    assert_eq!(*again.await.unwrap(), 7);
}

#[tokio::test]
async fn failed_work_is_held_where_an_operator_decides() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    let op = op("k").policy(on_lapse(OnLapse::Hold));
    let run = db.once.run_leased(&db.pool, &op, lease(), async |_: &mut Work| {
        sqlx::query("select 1/0").execute(&mut db.conn().await).await?;
        Ok::<_, Failure>(())
    });
    assert!(matches!(run.await.unwrap_err(), RunError::Work { .. }));
    db.advance(Duration::from_secs(60)).await;
    let again =
        db.once.run_leased(&db.pool, &op, lease(), async |_: &mut Work| Ok::<_, Failure>(()));
    assert!(matches!(again.await.unwrap_err(), RunError::Held(_)));
    let told: String = db.ask("select last_error from {}.idempotency_keys").await;
    assert_eq!(told, "a database error (SQLSTATE 22012)");
}

#[tokio::test]
async fn a_final_failure_is_replayed() {
    let db = TestDb::new().await;
    let calls = AtomicU32::new(0);
    let op = op("k");
    for replay in [false, true] {
        let run = db.once.run_leased(&db.pool, &op, lease(), async |work: &mut Work| {
            calls.fetch_add(1, Ordering::Relaxed);
            effect(work.last_tx().await?, &db.schema, "undone").await?;
            Err::<(), _>(Failure::keep(Response::bytes("declined")))
        });
        let error = run.await.unwrap_err();
        let RunError::Failed { response, replayed, .. } = error else { panic!("{error:?}") };
        assert!(Failure::keep(response.clone()).error().is_none());
        assert_eq!((response.body(), replayed), (b"declined".as_slice(), replay));
    }
    assert_eq!((calls.load(Ordering::Relaxed), db.effects().await), (1, 0));
}

#[tokio::test]
async fn work_that_always_fails_is_held_when_its_attempts_are_used_up() {
    let db = TestDb::new().await;
    let ours = op("k").fingerprint(Fingerprint::of_bytes("100")).policy(tried(2));
    let fails = async || {
        db.once
            .run_leased(&db.pool, &ours, lease(), async |_: &mut Work| {
                Err::<(), _>(Failure::from("no"))
            })
            .await
            .unwrap_err()
    };
    for _ in 0..2 {
        assert!(matches!(fails().await, RunError::Work { .. }));
    }
    assert!(matches!(fails().await, RunError::Held(_)));
    let told: String = db.ask("select last_error from {}.idempotency_keys").await;
    assert_eq!(told, "the work returned an error");
    // It may have called a remote with a derived key, so the key stays bound to its request.
    let other = op("k").fingerprint(Fingerprint::of_bytes("200"));
    let run =
        db.once.run_leased(&db.pool, &other, lease(), async |_: &mut Work| Ok::<_, Failure>(()));
    assert!(matches!(run.await.unwrap_err(), RunError::Mismatch(_)));
}

#[tokio::test]
async fn a_claim_whose_end_is_refused_is_given_up_at_once() {
    let db = TestDb::new().await;
    db.execute("alter table {}.effect add unique (key) deferrable initially deferred").await;
    db.execute("insert into {}.effect (key) values ('there')").await;
    let not_json = HashMap::from([(vec![1_u8], ())]);
    let json = HashMap::new();
    for (case, told) in [
        ("not JSON", "the response cannot be written as JSON"),
        ("COMMIT refused", "a database error (SQLSTATE 23505)"),
        ("complete refused", "a database error (SQLSTATE 23514)"),
        ("complete refused after last writes", "a database error (SQLSTATE 23514)"),
        ("fail refused", "a database error (SQLSTATE 23514)"),
    ] {
        for (policy, claim) in [(OnLapse::Retry, "lapsed"), (OnLapse::Hold, "live")] {
            db.execute("delete from {}.idempotency_keys").await;
            let op = op("k").policy(on_lapse(policy));
            let run = db.once.run_leased(&db.pool, &op, lease(), async |work: &mut Work| {
                let key = if case == "COMMIT refused" { "there" } else { "undone" };
                if case != "complete refused" {
                    effect(work.last_tx().await?, &db.schema, key).await?;
                }
                if told.ends_with("23514)") {
                    let sql =
                        "alter table {}.idempotency_keys add constraint refused check (status = 1)";
                    db.execute(sql).await;
                }
                match case {
                    "fail refused" => Err(Failure::keep(Response::bytes("declined"))),
                    "not JSON" => Ok(&not_json),
                    _ => Ok(&json),
                }
                .cloned()
            });
            let error = run.await.unwrap_err();
            let RunError::Protocol(error) = error else { panic!("{case}: {error:?}") };
            let is_works = error.kind() == ErrorKind::CommitRefused;
            assert_eq!(is_works, case == "COMMIT refused", "{case}: {error:?}");
            db.execute("alter table {}.idempotency_keys drop constraint if exists refused").await;
            assert_eq!(db.effects().await, 1, "{case}");
            let found =
                "select claim || ': ' || last_error from {}.operation_status('test/scope', 'k')";
            assert_eq!(db.ask::<String>(found).await, format!("{claim}: {told}"), "{case}");
            if policy == OnLapse::Retry {
                let again = db.once.run_leased(&db.pool, &op, lease(), async |work: &mut Work| {
                    Ok::<_, Failure>(work.attempt())
                });
                assert_eq!(*again.await.unwrap(), 2, "{case}");
            }
        }
    }
}

#[tokio::test]
async fn an_error_that_wraps_one_of_ours_is_told_in_words() {
    let db = TestDb::new().await;
    drop(db.lease(&op("live"), Duration::from_secs(60)).await);
    let inner = async || {
        let run = async |_: &mut Work| Ok::<_, Failure>(());
        db.once.run_leased(&db.pool, &op("live"), lease(), run).await.unwrap_err()
    };
    let asked = sqlx::query("select 1/0").execute(&db.pool).await.unwrap_err();
    let kept = async || {
        let work = async |_: &mut Work| Err::<(), _>(Failure::keep(Response::empty()));
        db.once.run_leased(&db.pool, &op("kept"), lease(), work).await.unwrap_err()
    };
    let wrapped: [(anyhow::Error, &str); 4] = [
        (anyhow::Error::new(kept().await), "a final failure is stored"),
        (anyhow::Error::new(inner().await).context("order 4242"), "another claim is live"),
        (anyhow::Error::new(asked).context("order 4242"), "a database error (SQLSTATE 22012)"),
        (anyhow::anyhow!("order 4242"), "the work returned an error"),
    ];
    for (error, expected) in wrapped {
        let op = op(expected);
        let run = db.once.run_leased(&db.pool, &op, lease(), async |_: &mut Work| {
            Err::<(), _>(Failure::from(error))
        });
        run.await.unwrap_err();
        let told = db.sql("select last_error from {}.idempotency_keys where key = $1");
        let told: String =
            sqlx::query_scalar(told).bind(expected).fetch_one(&db.pool).await.unwrap();
        assert_eq!(told, expected);
    }
}

// A step that was done must not be done again for its output.
#[tokio::test]
async fn an_output_that_cannot_be_read_back_is_refused_and_its_step_is_not_repeated() {
    let db = TestDb::new().await;
    let op = op("k");
    let asked = AtomicU32::new(0);
    let ask = async || {
        db.once
            .run_leased(&db.pool, &op, lease(), async |work: &mut Work| {
                let ask = async || {
                    asked.fetch_add(1, Ordering::Relaxed);
                    Ok::<_, Failure>(f64::NAN)
                };
                work.step("ask", ask).await.map(drop)
            })
            .await
    };
    for kind in [ErrorKind::Encoding, ErrorKind::StepChanged, ErrorKind::StepChanged] {
        let Err(RunError::Protocol(error)) = ask().await else { panic!("it is refused") };
        assert_eq!(error.kind(), kind);
    }
    assert_eq!(asked.load(Ordering::Relaxed), 1, "the remote was asked once");
}

// What is in one transaction with its record is undone instead.
#[tokio::test]
async fn a_value_that_cannot_be_read_back_undoes_what_it_can() {
    let db = TestDb::new().await;
    let op = op("k");
    let run = db.once.run_leased(&db.pool, &op, lease(), async |work: &mut Work| {
        let write =
            async |tx: &mut sqlx::PgConnection| effect(tx, &db.schema, "k").await.map(|_| f64::NAN);
        work.step_tx("write", write).await.map(drop)
    });
    let RunError::Protocol(error) = run.await.unwrap_err() else { panic!("it is refused") };
    assert_eq!(error.kind(), ErrorKind::Encoding);
    let run = db.once.run_leased(&db.pool, &op, lease(), async |work: &mut Work| {
        effect(work.last_tx().await?, &db.schema, "k").await?;
        Ok::<_, Failure>(f64::NAN)
    });
    let RunError::Protocol(error) = run.await.unwrap_err() else { panic!("it is refused") };
    assert_eq!(error.kind(), ErrorKind::Encoding);
    let steps: i64 = db.ask("select count(*) from {}.steps").await;
    assert_eq!((steps, db.effects().await), (0, 0));
}

#[tokio::test]
async fn a_remote_that_cannot_be_reached_is_not_called_the_database() {
    let db = TestDb::new().await;
    let refused = || std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
    let op = op("k");
    let run =
        db.once.run_leased(&db.pool, &op, lease(), async |_: &mut Work| Err::<(), _>(refused()));
    let error = run.await.unwrap_err();
    assert_eq!(error.to_string(), "nothing was kept: a connection failed");
    let told = "select last_error from {}.operation_status('test/scope', 'k')";
    assert_eq!(db.ask::<String>(told).await, "a connection failed");
}
