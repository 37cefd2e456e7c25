//! A leased handler that ends without an outcome, under a policy that lets an operator decide.

use axum::extract::Request;
use axum::response::IntoResponse;
use http::StatusCode;
use pgonce::OnLapse;
use pgonce::web::{Answer, OnceClaim};

use super::kit::{App, LEASE, Mode, handled};
use super::{post, send};
use crate::support::db::{TestDb, on_lapse};

/// Ends with this status, before or after a call to the remote.
fn ends(db: &TestDb, policy: OnLapse, asks: bool, status: StatusCode) -> App {
    let layer = Mode::Leased.layer(db).policy(on_lapse(policy)).unwrap();
    handled(layer, move |_, request: Request| async move {
        if asks {
            let _key = OnceClaim::of(request.extensions()).unwrap().derived_key("charge");
        }
        status.into_response()
    })
}

// Trap 45. A 5xx or a time-out does not tell whether the remote has acted, even a remote that takes no keys.
#[tokio::test]
async fn an_error_is_held_where_an_operator_decides() {
    let (error, timeout) = (StatusCode::INTERNAL_SERVER_ERROR, StatusCode::REQUEST_TIMEOUT);
    for (status, asks) in [(error, true), (error, false), (timeout, true)] {
        let db = TestDb::new().await;
        db.stop_clock().await;
        let app = ends(&db, OnLapse::Hold, asks, status);
        assert_eq!(send(&app.router, post("k", "")).await.answer, Some(Answer::Unknown));
        db.advance(LEASE).await;
        assert_eq!(send(&app.router, post("k", "")).await.answer, Some(Answer::Held));
        assert_eq!(app.calls(), 1);
    }
}

#[tokio::test]
async fn an_error_without_that_policy_or_a_refusal_frees_the_key() {
    let error = StatusCode::INTERNAL_SERVER_ERROR;
    for (policy, status) in [(OnLapse::Retry, error), (OnLapse::Hold, StatusCode::BAD_REQUEST)] {
        let db = TestDb::new().await;
        let app = ends(&db, policy, false, status);
        for call in 1..=2 {
            assert_eq!(send(&app.router, post("k", "")).await.answer, Some(Answer::Released));
            assert_eq!(app.calls(), call);
        }
    }
}

// The remote was called, then its receipt could not be committed.
#[tokio::test]
async fn last_writes_that_fail_do_not_free_the_key_where_an_operator_decides() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    db.execute("create table {}.receipt (n int unique deferrable initially deferred)").await;
    let sql = format!("insert into {}.receipt values (1), (1)", db.schema);
    let layer = Mode::Leased.layer(&db).policy(on_lapse(OnLapse::Hold)).unwrap();
    let app = handled(layer, move |_, request: Request| {
        let sql = sqlx::AssertSqlSafe(sql.clone());
        async move {
            let claim = OnceClaim::of(request.extensions()).unwrap();
            let mut tx = claim.begin().await.unwrap();
            sqlx::raw_sql(sql).execute(&mut *tx).await.unwrap();
            StatusCode::CREATED.into_response()
        }
    });
    assert_eq!(send(&app.router, post("k", "")).await.answer, Some(Answer::CommitRefused));
    assert_eq!(send(&app.router, post("k", "")).await.answer, Some(Answer::InProgress));
    db.advance(LEASE).await;
    assert_eq!(send(&app.router, post("k", "")).await.answer, Some(Answer::Held));
    assert_eq!(app.calls(), 1);
}
