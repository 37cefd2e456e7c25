//! `Clock` moves the time of all that pgonce does in a database.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::time::Duration;

use pgonce::{Begin, Lease, Operation, PgOnce, SchemaName};
use pgonce_testing::{Clock, Throwaway};
use sqlx::{AssertSqlSafe, PgConnection, PgPool};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

async fn database(once: &PgOnce) -> PgPool {
    let server = Throwaway::shared().await.unwrap();
    let pool = PgPool::connect_with(server.new_database().await.unwrap()).await.unwrap();
    once.migrate(&mut pool.acquire().await.unwrap()).await.unwrap();
    pool
}

fn op() -> Operation {
    Operation::new("acme/payments.create", "order-17").unwrap()
}

/// Whether the work ran, and not a replay.
async fn runs(once: &PgOnce, pool: &PgPool) -> bool {
    let work = async |_: &mut PgConnection| Ok::<_, sqlx::Error>(());
    !once.run(pool, &op(), work).await.unwrap().is_replay()
}

#[tokio::test]
async fn a_key_is_forgotten_after_its_retention() {
    let once = PgOnce::new();
    let pool = database(&once).await;
    let mut clock = Clock::install(&pool, "pgonce").await.unwrap();
    assert!(runs(&once, &pool).await);
    clock.advance(DAY - Duration::from_secs(60)).await.unwrap();
    assert!(!runs(&once, &pool).await);
    clock.advance(Duration::from_secs(60)).await.unwrap();
    assert_eq!(clock.ahead(), DAY);
    assert!(runs(&once, &pool).await);
    // The new key is counted from the moved clock.
    assert!(!runs(&once, &pool).await);
    clock.advance(DAY).await.unwrap();
    assert!(runs(&once, &pool).await);
}

#[tokio::test]
async fn a_lease_lapses() {
    let once = PgOnce::new();
    let pool = database(&once).await;
    let mut clock = Clock::install(&pool, "pgonce").await.unwrap();
    let begin = async || {
        let lease = Lease::new(Duration::from_secs(60)).unwrap();
        once.begin_leased(&pool, &op(), lease).await.unwrap()
    };
    let Begin::Started(first) = begin().await else { panic!("the key is new") };
    clock.advance(Duration::from_secs(50)).await.unwrap();
    assert!(matches!(begin().await, Begin::InProgress(_)));
    clock.advance(Duration::from_secs(10)).await.unwrap();
    assert!(matches!(begin().await, Begin::Started(_)));
    drop(first);
}

#[tokio::test]
async fn the_reaper_deletes() {
    let once = PgOnce::new().schema(SchemaName::new("keys").unwrap());
    let pool = database(&once).await;
    let mut clock = Clock::install(&pool, "keys").await.unwrap();
    assert!(runs(&once, &pool).await);
    let keys = async || -> i64 {
        let reap = AssertSqlSafe("call keys.reap()");
        sqlx::raw_sql(reap).execute(&pool).await.unwrap();
        let count = "select count(*) from keys.idempotency_keys";
        sqlx::query_scalar(count).fetch_one(&pool).await.unwrap()
    };
    clock.advance(DAY - Duration::from_secs(60)).await.unwrap();
    assert_eq!(keys().await, 1);
    clock.advance(Duration::from_secs(60)).await.unwrap();
    assert_eq!(keys().await, 0);
}

#[tokio::test]
async fn a_schema_without_pgonce_is_refused() {
    let pool = database(&PgOnce::new()).await;
    let error = Clock::install(&pool, "public").await.unwrap_err();
    assert!(error.to_string().contains("not installed in the schema public"), "{error}");
    let none: bool = sqlx::query_scalar("select to_regprocedure('public._clock()') is null")
        .fetch_one(&pool)
        .await
        .unwrap();
    assert!(none);
}
