//! Transactional routes: key, writes and response are one.

use axum::Router;
use axum::routing::post as on_post;
use http::StatusCode;
use pgonce::web::{Answer, OnceTx};

use super::{layer, post, send};
use crate::support::db::{TestDb, effect};

fn router(db: &TestDb, status: StatusCode) -> Router {
    let schema = db.schema.clone();
    let handler = async move |mut tx: OnceTx| {
        let id = effect(&mut tx, &schema, "paid").await.unwrap();
        (status, [("location", format!("/payments/{id}"))], format!("payment {id}"))
    };
    Router::new().route("/", on_post(handler).layer(layer(db)))
}

#[tokio::test]
async fn a_retry_gets_the_same_answer_and_the_handler_runs_once() {
    let db = TestDb::with_connections(1).await;
    let router = router(&db, StatusCode::CREATED);
    let first = send(&router, post("k", "100")).await;
    assert_eq!((first.status, first.answer), (StatusCode::CREATED, Some(Answer::Performed)));
    assert!(!first.is_replay());
    let retry = send(&router, post("k", "100")).await;
    assert!(retry.is_replay(), "{retry:?}");
    assert_eq!((retry.status, &retry.body), (first.status, &first.body));
    assert_eq!(retry.header("location"), first.header("location"));
    assert_eq!(db.effects().await, 1);
    let other = send(&router, post("k", "200")).await;
    assert_eq!((other.status, other.code()), (StatusCode::UNPROCESSABLE_ENTITY, "mismatch".into()));
}

#[tokio::test]
async fn an_error_undoes_everything_and_frees_the_key() {
    let db = TestDb::with_connections(1).await;
    let failing = router(&db, StatusCode::INTERNAL_SERVER_ERROR);
    let failed = send(&failing, post("k", "100")).await;
    assert_eq!(failed.answer, Some(Answer::Released));
    assert_eq!(db.effects().await, 0);
    let retry = send(&router(&db, StatusCode::OK), post("k", "100")).await;
    assert_eq!(retry.answer, Some(Answer::Performed));
    assert_eq!(db.effects().await, 1);
}
