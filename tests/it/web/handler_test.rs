//! Handlers that are called as functions, without the layer.

use pgonce::ErrorKind;
use pgonce::web::{HandlerTest, OnceRejection};

use crate::support::db::{TestDb, effect, op};

#[tokio::test]
async fn what_a_handler_writes_is_committed_or_rolled_back() {
    let db = TestDb::new().await;
    for commits in [true, false] {
        let test = HandlerTest::transactional(&db.pool, op("k")).await.unwrap();
        effect(&mut test.tx().unwrap(), &db.schema, "transactional").await.unwrap();
        // As on a route: one at a time, and again when it is dropped.
        let tx = test.tx().unwrap();
        assert_eq!(test.tx().unwrap_err(), OnceRejection::InUse);
        drop(tx);
        if commits {
            test.commit().await.unwrap();
        }
        assert_eq!(db.effects().await, 1);
    }
    let test = HandlerTest::leased(&db.pool, op("k"));
    assert_eq!(test.tx().unwrap_err(), OnceRejection::Leased);
    let claim = test.claim();
    assert_eq!((claim.attempt(), claim.derived_key("x")), (1, op("k").derived_key("x")));
    effect(&mut claim.begin().await.unwrap(), &db.schema, "leased").await.unwrap();
    test.commit().await.unwrap();
    assert_eq!(db.effects().await, 2);
    let keys: i64 = db.ask("select count(*) from {}.idempotency_keys").await;
    assert_eq!(keys, 0, "there is no key");
}

#[tokio::test]
async fn a_handler_that_keeps_its_transaction_commits_nothing() {
    let db = TestDb::new().await;
    let test = HandlerTest::transactional(&db.pool, op("k")).await.unwrap();
    let mut kept = test.tx().unwrap();
    effect(&mut kept, &db.schema, "kept").await.unwrap();
    assert_eq!(test.commit().await.unwrap_err().kind(), ErrorKind::TransactionLost);
    drop(kept);
    assert_eq!(db.effects().await, 0);
}

// As on a route, where these are answered with 500.
#[tokio::test]
async fn what_a_route_would_refuse_is_refused() {
    let db = TestDb::new().await;
    for (statement, kind) in
        [("select 1/0", ErrorKind::TransactionAborted), ("commit", ErrorKind::TransactionLost)]
    {
        let test = HandlerTest::transactional(&db.pool, op("k")).await.unwrap();
        let mut tx = test.tx().unwrap();
        let _ignored = sqlx::query(statement).execute(&mut *tx).await;
        drop(tx);
        assert_eq!(test.commit().await.unwrap_err().kind(), kind, "{statement}");
    }
}
