//! The closure form and lost transactions: nested ones, other errors, retries.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use pgonce::{ErrorKind, Failure, RunError};
use sqlx::{Connection, PgConnection};

use crate::support::db::{TestDb, effect, op, started, waits};

#[tokio::test]
async fn a_nested_transaction_that_is_leaked_is_noticed_and_poisons_nothing() {
    let db = TestDb::with_connections(1).await;
    let error = db
        .once
        .run(&db.pool, &op("k"), async |tx| {
            let mut nested = tx.begin().await?;
            effect(&mut nested, &db.schema, "k").await?;
            std::mem::forget(nested);
            Ok::<_, sqlx::Error>(())
        })
        .await
        .unwrap_err();
    let RunError::Protocol(error) = error else { panic!("{error:?}") };
    assert_eq!(error.kind(), ErrorKind::TransactionLost);
    // The next borrower's write takes effect, the work's does not.
    effect(&mut db.pool.acquire().await.unwrap(), &db.schema, "next").await.unwrap();
    assert_eq!(db.ask::<String>("select string_agg(key, ',') from {}.effect").await, "next");
}

#[tokio::test]
async fn work_that_loses_its_transaction_is_told_so_and_not_retried() {
    let db = TestDb::new().await;
    let broken_pipe = || sqlx::Error::Io(std::io::ErrorKind::BrokenPipe.into());
    for (key, ending) in [
        ("ok", None),
        ("error", Some(sqlx::Error::RowNotFound)),
        // Even a broken connection does not tell what was committed before it broke.
        ("broken", Some(broken_pipe())),
    ] {
        let ending = &ending;
        let error = db
            .once
            .run(&db.pool, &op(key), async |tx| {
                // A nested begin that fails: the driver rolls back the whole transaction.
                let _overlooked = sqlx::query("select 1/0").execute(&mut *tx).await;
                assert!(tx.begin().await.is_err());
                effect(tx, &db.schema, "outside").await?; // autocommits
                match ending {
                    None => Ok(()),
                    Some(sqlx::Error::RowNotFound) => Err(sqlx::Error::RowNotFound),
                    Some(_) => Err(broken_pipe()),
                }
            })
            .await
            .unwrap_err();
        assert!(!error.is_retryable());
        let RunError::Protocol(error) = error else { panic!("{error:?}") };
        assert_eq!(error.kind(), ErrorKind::TransactionLost, "{key}");
    }
}

#[tokio::test]
async fn lost_transactions_are_recognised_in_every_kind_of_error() {
    #[derive(Debug, thiserror::Error)]
    #[error("wrapped")]
    struct Wrapped(#[source] sqlx::Error);
    let db = TestDb::new().await;
    let lose = async |tx: &mut PgConnection| {
        let sql = "do $$ begin raise exception 'lost' using errcode = '40001'; end $$";
        sqlx::raw_sql(sql).execute(tx).await.map(drop)
    };
    let calls = AtomicU32::new(0);
    let count = || calls.fetch_add(1, Ordering::Relaxed);
    let op = crate::support::db::op("anyhow");
    let run = db.once.run(&db.pool, &op, async |tx| -> anyhow::Result<()> {
        count();
        Ok(lose(tx).await?)
    });
    assert!(run.await.unwrap_err().is_retryable());
    let op = crate::support::db::op("context");
    let run = db.once.run(&db.pool, &op, async |tx| -> anyhow::Result<()> {
        count();
        anyhow::Context::context(lose(tx).await, "paying")
    });
    assert!(run.await.unwrap_err().is_retryable());
    let op = crate::support::db::op("wrapped");
    let run = db.once.run(&db.pool, &op, async |tx| {
        count();
        lose(tx).await.map_err(Wrapped)
    });
    assert!(run.await.unwrap_err().is_retryable());
    assert_eq!(calls.load(Ordering::Relaxed), 60, "twenty each");
}

#[tokio::test]
async fn a_wait_is_not_started_over_by_a_lost_transaction() {
    let db = TestDb::new().await;
    let mut holder = db.pool.begin().await.unwrap();
    let claim = started(db.once.begin(&mut holder, &op("k")).await.unwrap());
    // Every begin that gives up waiting then fails with a serialization failure.
    db.execute(
        "create or replace function {}._take_lock(p_lock_id bigint, p_deadline timestamptz)
           returns void
           language plpgsql as $$ begin
             perform pg_sleep(greatest(0, extract(epoch from p_deadline - clock_timestamp())));
             raise exception 'lost' using errcode = '40001'; end $$",
    )
    .await;
    let began = std::time::Instant::now();
    let wait = Duration::from_millis(500);
    let result =
        db.once.run(&db.pool, &op("k").policy(waits(wait)), async |_| Ok::<_, Failure>(())).await;
    assert!(result.unwrap_err().is_retryable());
    // Ten attempts and their pauses, but one wait.
    assert!(began.elapsed() < 9 * wait, "{:?}", began.elapsed());
    drop(claim);
}

#[tokio::test]
async fn a_nested_transaction_leaked_before_a_kept_failure_is_noticed_too() {
    let db = TestDb::with_connections(1).await;
    let error = db
        .once
        .run(&db.pool, &op("k"), async |tx| {
            std::mem::forget(tx.begin().await?);
            Err::<(), _>(Failure::keep(pgonce::Response::empty()))
        })
        .await
        .unwrap_err();
    let RunError::Protocol(error) = error else { panic!("{error:?}") };
    assert_eq!(error.kind(), ErrorKind::TransactionLost);
    effect(&mut db.pool.acquire().await.unwrap(), &db.schema, "next").await.unwrap();
    assert_eq!(db.effects().await, 1);
}

#[tokio::test]
async fn a_connection_lost_in_a_nested_begin_keeps_its_cause() {
    let db = TestDb::new().await;
    let error = db
        .once
        .run(&db.pool, &op("k"), async |tx| {
            let pid: i32 =
                sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut *tx).await?;
            db.execute(&format!("select pg_terminate_backend({pid}, 10000)")).await;
            let nested = tx.begin().await?;
            nested.commit().await
        })
        .await
        .unwrap_err();
    let RunError::Protocol(error) = error else { panic!("{error:?}") };
    // It looks like a lost transaction, and must not be retried as one. The error names the cause.
    assert_eq!(error.kind(), ErrorKind::TransactionLost);
    assert!(
        error
            .to_string()
            .contains("before that, the work had failed: the database could not be reached"),
        "{error}"
    );
}
