//! Silent connections: the socket stays open, but no answer comes. Neither the work nor a call of pgonce hangs.

use std::time::Duration;

use pgonce::{ErrorKind, Failure, Lease, RunError, Work};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tokio::time::timeout;

use crate::support::db::{PATIENCE, TestDb, effect, op};
use crate::support::proxy::Proxy;

/// A connection lent to the work may be silent for ten times this long.
fn lease() -> Lease {
    Lease::new(Duration::from_millis(300)).unwrap()
}

/// Through the proxy, without pings: the statement itself meets the silence.
fn pool(proxy: &Proxy) -> PgPool {
    PgPoolOptions::new()
        .max_connections(2)
        .acquire_timeout(Duration::from_secs(1))
        .test_before_acquire(false)
        .connect_lazy_with(proxy.options())
}

/// The pool can be closed: no returned connection still waits for an answer.
async fn closes(pool: PgPool) {
    timeout(PATIENCE, pool.close()).await.expect("the pool closes");
}

#[tokio::test]
async fn work_whose_lent_connection_falls_silent_loses_its_lease() {
    // In `last_tx`, then in `step_tx`.
    for by_step in [false, true] {
        let db = TestDb::new().await;
        let (proxy, op) = (Proxy::start(&db, None), op("k"));
        let pool = pool(&proxy);
        let run = db.once.run_leased(&pool, &op, lease(), async |work: &mut Work| {
            let write = async |tx: &mut sqlx::PgConnection| {
                effect(tx, &db.schema, "silent").await?;
                proxy.fall_silent();
                effect(tx, &db.schema, "silent").await
            };
            match by_step {
                true => work.step_tx("write", write).await,
                false => Ok::<_, Failure>(write(work.last_tx().await?).await?),
            }
        });
        let error = timeout(PATIENCE, run).await.expect("it ends").unwrap_err();
        let RunError::Protocol(ours) = &error else { panic!("{error:?}") };
        assert!(ours.kind() == ErrorKind::Connection && ours.is_retryable(), "{error:?}");
        let last_error: String = db.ask("select last_error from {}.idempotency_keys").await;
        assert!(last_error.contains("no answer"), "{last_error}");
        let retry = db.once.run_leased(&db.pool, &op, lease(), async |work: &mut Work| {
            effect(work.last_tx().await?, &db.schema, "retry").await.map_err(Failure::from)
        });
        assert!(!retry.await.expect("the key is free").is_replay());
        assert_eq!(db.effects().await, 1);
        closes(pool).await;
    }
}

#[tokio::test]
async fn work_that_has_no_connection_on_loan_keeps_its_lease() {
    let (db, op) = (TestDb::new().await, op("k"));
    let run = db.once.run_leased(&db.pool, &op, lease(), async |work: &mut Work| {
        work.step_tx("write", async |tx| effect(tx, &db.schema, "k").await).await?;
        // Longer than a connection may be silent.
        db.until("select lease_expires_at > created_at + interval '5 s' from {}.idempotency_keys")
            .await;
        Ok::<_, Failure>(work.attempt())
    });
    assert_eq!(*run.await.unwrap(), 1);
}

#[tokio::test]
async fn a_transaction_that_is_asked_for_again_and_again_keeps_its_lease() {
    let (db, op) = (TestDb::new().await, op("k"));
    let run = db.once.run_leased(&db.pool, &op, lease(), async |work: &mut Work| {
        let long = "select lease_expires_at > created_at + interval '5 s' from {}.keys";
        loop {
            let tx = work.last_tx().await?;
            let pushed: bool = sqlx::query_scalar(db.sql(long)).fetch_one(tx).await?;
            if pushed {
                return Ok::<_, Failure>(());
            }
        }
    });
    run.await.unwrap();
}

#[tokio::test]
async fn a_call_without_an_answer_goes_over_another_connection() {
    let db = TestDb::new().await;
    let (proxy, op) = (Proxy::start(&db, None), op("k"));
    let pool = pool(&proxy);
    let run = db.once.run_leased(&pool, &op, lease(), async |work: &mut Work| {
        let silenced = async || {
            // The connection that begin returned is back: the record will use it.
            while pool.num_idle() == 0 {
                tokio::task::yield_now().await;
            }
            proxy.fall_silent();
            Ok::<_, Failure>(7)
        };
        work.step("remote", silenced).await
    });
    assert_eq!(*timeout(PATIENCE, run).await.expect("it ends").unwrap(), 7);
    assert_eq!(db.ask::<i64>("select count(*) from {}.steps").await, 1);
    closes(pool).await;
}

#[tokio::test]
async fn a_call_that_never_gets_an_answer_ends_and_may_be_tried_again() {
    let db = TestDb::new().await;
    let (proxy, op) = (Proxy::start(&db, None), op("k"));
    let pool = pool(&proxy);
    let run = db.once.run_leased(&pool, &op, lease(), async |work: &mut Work| {
        let tx = work.last_tx().await?;
        effect(tx, &db.schema, "k").await?;
        proxy.fall_silent_for_good();
        Ok::<_, Failure>(())
    });
    let error = timeout(PATIENCE, run).await.expect("it ends").unwrap_err();
    let RunError::Protocol(ours) = &error else { panic!("{error:?}") };
    assert!(ours.kind() == ErrorKind::Connection && ours.is_retryable(), "{error:?}");
    closes(pool).await;
}

/// A handler that takes its transaction once, then writes through it without an answer.
#[tokio::test]
async fn a_route_whose_transaction_falls_silent_loses_its_lease_and_says_so() {
    use axum::response::IntoResponse;
    use pgonce::web::{Answer, IdempotencyLayer};

    use crate::web::kit::{app, handled, tx_of};
    use crate::web::{layer, post, scoped, send};

    let db = TestDb::new().await;
    let proxy = std::sync::Arc::new(Proxy::start(&db, None));
    let (pool, lease) = (pool(&proxy), lease().silent_for(Duration::from_secs(2)).unwrap());
    let silent =
        IdempotencyLayer::new(db.once.clone(), pool.clone(), scoped).leased(lease).unwrap();
    let schema = db.schema.clone();
    let silent = handled(silent, move |_, request| {
        let (proxy, schema) = (std::sync::Arc::clone(&proxy), schema.clone());
        async move {
            let mut tx = tx_of(request.extensions()).await.unwrap();
            effect(&mut tx, &schema, "silent").await.unwrap();
            proxy.fall_silent();
            effect(&mut tx, &schema, "silent").await.unwrap();
            "unreachable".into_response()
        }
    });
    let began = std::time::Instant::now();
    let got = timeout(PATIENCE, send(&silent.router, post("k", ""))).await.expect("it ends");
    assert!(began.elapsed() >= Duration::from_secs(2), "it is given the time it asked for");
    assert_eq!((got.status.as_u16(), got.answer), (503, Some(Answer::NotCommitted)));
    let last_error: String = db.ask("select last_error from {}.idempotency_keys").await;
    assert!(last_error.contains("no answer"), "{last_error}");
    let retry = app(&db, layer(&db).leased(lease).unwrap(), |_| "the retry's");
    let got = send(&retry.router, post("k", "")).await;
    assert_eq!((got.answer, got.body), (Some(Answer::Performed), "the retry's".into()));
    assert_eq!(db.effects().await, 1);
    closes(pool).await;
}
