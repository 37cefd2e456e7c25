//! The closure form: `run`.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use pgonce::{ErrorKind, Failure, Fingerprint, OnLapse, Response, RunError};
use serde::{Deserialize, Serialize};
use sqlx::{Connection, PgConnection};

use crate::support::db::{TestDb, effect, on_lapse, op, waits};

const MINUTE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Payment {
    id: i64,
    note: String,
}

#[derive(Debug, thiserror::Error)]
enum PaymentError {
    #[error("the card was declined")]
    Declined,
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
}

async fn pay(tx: &mut PgConnection, db: &TestDb, key: &str) -> Result<Payment, PaymentError> {
    let id = effect(tx, &db.schema, key).await?;
    Ok(Payment { id, note: format!("paid {key}") })
}

#[tokio::test]
async fn a_retry_gets_the_first_value_and_runs_nothing() {
    let db = TestDb::new().await;
    let op = op("k").fingerprint(Fingerprint::of_json(&("acme", 100)).unwrap());
    let first = db.once.run(&db.pool, &op, async |tx| pay(tx, &db, "k").await).await.unwrap();
    let again = db.once.run(&db.pool, &op, async |tx| pay(tx, &db, "k").await).await.unwrap();
    assert!(!first.is_replay() && again.is_replay());
    assert_eq!(first.note, "paid k", "a Done derefs to its value");
    assert_eq!(first.into_inner(), again.into_inner());
    assert_eq!(db.effects().await, 1);
}

#[tokio::test]
async fn a_failure_undoes_everything_and_the_same_key_runs_again() {
    let db = TestDb::new().await;
    let error = db
        .once
        .run(&db.pool, &op("k"), async |tx| {
            pay(tx, &db, "k").await?;
            Err::<Payment, _>(PaymentError::Declined)
        })
        .await
        .unwrap_err();
    let RunError::Work { error: source, .. } = &error else {
        panic!("expected the work's error, got {error:?}")
    };
    assert!(matches!(source, PaymentError::Declined));
    assert!(!error.is_retryable());
    assert_eq!(db.effects().await, 0);
    let rows: i64 = db.ask("select count(*) from {}.idempotency_keys").await;
    assert_eq!(rows, 0, "nothing is remembered");
    db.once.run(&db.pool, &op("k"), async |tx| pay(tx, &db, "k").await).await.unwrap();
    assert_eq!(db.effects().await, 1);
}

#[tokio::test]
async fn a_kept_failure_undoes_the_work_and_is_replayed() {
    let db = TestDb::new().await;
    let calls = AtomicU32::new(0);
    for _ in 0..2 {
        let error = db
            .once
            .run(&db.pool, &op("k"), async |tx| {
                calls.fetch_add(1, Ordering::Relaxed);
                pay(tx, &db, "k").await?;
                Err::<Payment, _>(Failure::keep(Response::bytes("declined").with_code(402)))
            })
            .await
            .unwrap_err();
        let RunError::Failed { response, .. } = error else {
            panic!("expected failed, got {error:?}")
        };
        assert_eq!((response.code(), response.body()), (Some(402), b"declined".as_slice()));
    }
    assert_eq!(calls.load(Ordering::Relaxed), 1);
    assert_eq!(db.effects().await, 0, "the writes are undone");
}

#[tokio::test]
async fn a_kept_failure_is_stored_even_when_the_work_broke_its_transaction() {
    let db = TestDb::new().await;
    let failing = async |tx: &mut PgConnection| {
        let broken = sqlx::query("select 1/0").execute(&mut *tx).await;
        assert!(broken.is_err());
        Err::<(), _>(Failure::keep(Response::bytes("division by zero")))
    };
    for _ in 0..2 {
        let error = db.once.run(&db.pool, &op("k"), failing).await.unwrap_err();
        assert!(matches!(error, RunError::Failed { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn any_error_type_can_be_returned() {
    let db = TestDb::new().await;
    let run = db.once.run(&db.pool, &op("a"), async |_| Err::<(), _>(anyhow::anyhow!("no"))).await;
    assert!(matches!(run, Err(RunError::Work { .. })));
    let run = db.once.run(&db.pool, &op("b"), async |_| Err::<(), _>("no")).await;
    assert!(matches!(run, Err(RunError::Work { .. })));
    let run =
        db.once.run(&db.pool, &op("c"), async |_| Err::<(), _>(sqlx::Error::RowNotFound)).await;
    assert!(matches!(run, Err(RunError::Work { .. })));
}

#[tokio::test]
async fn work_that_hides_its_database_error_commits_nothing() {
    let db = TestDb::new().await;
    let error = db
        .once
        .run(&db.pool, &op("k"), async |tx| {
            effect(tx, &db.schema, "k").await?;
            let _ignored = sqlx::query("select 1/0").execute(tx).await;
            Ok::<_, sqlx::Error>(())
        })
        .await
        .unwrap_err();
    let RunError::Protocol(error) = error else { panic!("{error:?}") };
    assert_eq!(error.sqlstate().as_deref(), Some("25P02"));
    assert_eq!(db.effects().await, 0);
}

#[tokio::test]
async fn serialization_failures_and_deadlocks_run_the_work_again() {
    let db = TestDb::new().await;
    for sqlstate in ["40001", "40P01"] {
        let calls = AtomicU32::new(0);
        let raise =
            format!("do $$ begin raise exception 'lost' using errcode = '{sqlstate}'; end $$");
        let done = db
            .once
            .run(&db.pool, &op(sqlstate), async |tx| {
                let id = effect(tx, &db.schema, sqlstate).await?;
                if calls.fetch_add(1, Ordering::Relaxed) < 2 {
                    sqlx::raw_sql(db.sql(&raise)).execute(tx).await.map_err(PaymentError::from)?;
                }
                Ok::<_, PaymentError>(id)
            })
            .await
            .unwrap();
        assert!(!done.is_replay());
        assert_eq!(calls.load(Ordering::Relaxed), 3);
    }
    assert_eq!(db.effects().await, 2, "one effect per key");
}

#[tokio::test]
async fn a_transaction_that_always_loses_is_given_up_as_retryable() {
    let db = TestDb::new().await;
    let calls = AtomicU32::new(0);
    let error = db
        .once
        .run(&db.pool, &op("k"), async |tx| {
            calls.fetch_add(1, Ordering::Relaxed);
            sqlx::raw_sql("do $$ begin raise exception 'lost' using errcode = '40001'; end $$")
                .execute(tx)
                .await
                .map(drop)
        })
        .await
        .unwrap_err();
    assert!(error.is_retryable());
    assert_eq!(calls.load(Ordering::Relaxed), 20);
}

#[tokio::test]
async fn a_commit_that_the_server_refuses_is_not_unknown() {
    let db = TestDb::new().await;
    db.execute("alter table {}.effect add unique (key) deferrable initially deferred").await;
    let error = db
        .once
        .run(&db.pool, &op("k"), async |tx| {
            effect(tx, &db.schema, "twice").await?;
            effect(tx, &db.schema, "twice").await
        })
        .await
        .unwrap_err();
    let RunError::Protocol(error) = error else { panic!("{error:?}") };
    assert_eq!(error.kind(), ErrorKind::CommitRefused);
    assert_eq!(error.sqlstate().as_deref(), Some("23505"));
    assert_eq!(db.effects().await, 0);
    // The same key is free, and the pool's connection works.
    db.once.run(&db.pool, &op("k"), async |tx| effect(tx, &db.schema, "once").await).await.unwrap();
}

#[tokio::test]
async fn the_other_answers_are_errors_of_their_own() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    let work = async |tx: &mut PgConnection| effect(tx, &db.schema, "never").await;

    let bound = op("bound").fingerprint(Fingerprint::of_bytes("one"));
    db.complete(&bound, "1").await;
    let other = op("bound").fingerprint(Fingerprint::of_bytes("two"));
    let error = db.once.run(&db.pool, &other, work).await.unwrap_err();
    assert!(matches!(error, RunError::Mismatch(_)) && !error.is_retryable());

    drop(db.lease(&op("leased"), MINUTE).await);
    let error = db.once.run(&db.pool, &op("leased"), work).await.unwrap_err();
    assert!(matches!(error, RunError::InProgress(_)) && error.is_retryable());

    db.advance(MINUTE).await;
    let held = op("leased").policy(on_lapse(OnLapse::Hold));
    let error = db.once.run(&db.pool, &held, work).await.unwrap_err();
    assert!(matches!(error, RunError::Held(_)) && !error.is_retryable());

    let tiny = db.once.clone().response_bytes_max(1);
    tiny.run(&db.pool, &op("large"), async |_| Ok::<_, Failure>("a long answer".to_owned()))
        .await
        .unwrap();
    let again = tiny.run(&db.pool, &op("large"), async |_| Ok::<_, Failure>(String::new())).await;
    assert!(matches!(again, Err(RunError::Omitted(_))));
    assert_eq!(db.effects().await, 0);
}

/// A value that some of its JSON does not give back.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Reading {
    celsius: f64,
    #[serde(skip)]
    sensor: u32,
}

#[tokio::test]
async fn a_value_that_no_retry_could_read_is_refused_at_once() {
    let db = TestDb::new().await;
    let read = async |tx: &mut PgConnection, celsius| {
        effect(tx, &db.schema, "k").await?;
        Ok::<_, sqlx::Error>(Reading { celsius, sensor: 7 })
    };
    for optimistic in [op("k"), op("k").optimistic()] {
        let run = db.once.run(&db.pool, &optimistic, async |tx| read(tx, f64::NAN).await);
        let RunError::Protocol(error) = run.await.unwrap_err() else { panic!("it is refused") };
        assert_eq!(error.kind(), ErrorKind::Encoding);
        assert!(error.to_string().contains("cannot be read back"), "{error}");
    }
    assert_eq!(db.effects().await, 0, "it is undone");
    let rows: i64 = db.ask("select count(*) from {}.idempotency_keys").await;
    assert_eq!(rows, 0, "nothing is remembered");
    // The first caller gets what a retry gets.
    let first = db.once.run(&db.pool, &op("k"), async |tx| read(tx, 20.5).await).await.unwrap();
    let again = db.once.run(&db.pool, &op("k"), async |tx| read(tx, 20.5).await).await.unwrap();
    assert_eq!(*first, Reading { celsius: 20.5, sensor: 0 });
    assert_eq!(*first, *again);
    // A retry that no longer can still gets what is stored, and work that committed by itself is told so.
    let late = op("k").optimistic();
    let run = db.once.run(&db.pool, &late, async |tx| read(tx, f64::NAN).await).await;
    assert!(run.unwrap().is_replay());
    let ended = op("ended");
    let run = db.once.run(&db.pool, &ended, async |tx| {
        sqlx::query("commit").execute(&mut *tx).await?;
        read(tx, f64::NAN).await
    });
    let RunError::Protocol(error) = run.await.unwrap_err() else { panic!("it is refused") };
    assert_eq!(error.kind(), ErrorKind::TransactionLost);
    // Of a secret there is nothing to read.
    let secret = op("secret").secret();
    let run = db.once.run(&db.pool, &secret, async |tx| read(tx, f64::NAN).await);
    assert_eq!(run.await.unwrap().sensor, 7);
}

#[tokio::test]
async fn a_replay_that_does_not_fit_the_type_runs_nothing() {
    let db = TestDb::new().await;
    db.complete(&op("k"), "\"text\"").await;
    let error = db
        .once
        .run(&db.pool, &op("k"), async |tx| effect(tx, &db.schema, "k").await)
        .await
        .unwrap_err();
    let RunError::Protocol(error) = error else { panic!("{error:?}") };
    assert_eq!(error.kind(), ErrorKind::ReplayUnreadable);
    assert_eq!(db.effects().await, 0);
}

#[tokio::test]
async fn run_waits_out_a_leased_claim_without_holding_a_connection() {
    let db = TestDb::with_connections(1).await;
    let claim = db.lease(&op("k"), MINUTE).await;
    let waiting = op("k").policy(waits(Duration::from_secs(20)));
    let run = db.once.run(&db.pool, &waiting, async |_| Ok::<u32, Failure>(0));
    let release = async {
        // Meanwhile the pool's only connection is free; otherwise this would time out.
        let mut conn = db.pool.acquire().await.unwrap();
        claim.complete(&mut conn, Response::json(&7).unwrap()).await.unwrap();
    };
    let (done, ()) = tokio::join!(run, release);
    let done = done.unwrap();
    assert!(done.is_replay());
    assert_eq!(done.into_inner(), 7);
}

#[tokio::test]
async fn nested_transactions_in_the_work_are_savepoints() {
    let db = TestDb::new().await;
    db.once
        .run(&db.pool, &op("k"), async |tx| {
            let mut undone = tx.begin().await?;
            effect(&mut undone, &db.schema, "undone").await?;
            drop(undone);
            let mut kept = tx.begin().await?;
            effect(&mut kept, &db.schema, "kept").await?;
            kept.commit().await
        })
        .await
        .unwrap();
    let kept: bool = db
        .ask(
            "select array_agg(key) = '{kept}' from {}.effect"
                .replace("'{kept}'", "array['kept']")
                .as_str(),
        )
        .await;
    assert!(kept);
}

#[tokio::test]
async fn a_panic_in_the_work_leaves_nothing_behind() {
    let db = std::sync::Arc::new(TestDb::with_connections(1).await);
    let inner = db.clone();
    let panicked = tokio::spawn(async move {
        let _ = inner
            .once
            .run(&inner.pool, &op("k"), async |tx| {
                effect(tx, &inner.schema, "k").await?;
                assert!(inner.schema.is_empty(), "the work panics");
                Ok::<_, sqlx::Error>(())
            })
            .await;
    });
    assert!(panicked.await.unwrap_err().is_panic());
    // The server may need a moment to notice the closed connection.
    let patient = op("k").policy(waits(crate::support::db::PATIENCE));
    db.once.run(&db.pool, &patient, async |tx| effect(tx, &db.schema, "k").await).await.unwrap();
    assert_eq!(db.effects().await, 1);
}

#[tokio::test]
async fn a_secret_operation_keeps_its_answer_to_itself() {
    let db = TestDb::new().await;
    let work = async |_: &mut PgConnection| Ok::<_, Failure>("a password".to_owned());
    let secret = op("k").secret();
    let first = db.once.run(&db.pool, &secret, work).await.unwrap();
    assert_eq!(first.into_inner(), "a password");
    let again = db.once.run(&db.pool, &secret, work).await;
    assert!(matches!(again, Err(RunError::Omitted(_))));
    let kept: i64 = db.ask("select count(response_body) from {}.idempotency_keys").await;
    assert_eq!(kept, 0);
}
