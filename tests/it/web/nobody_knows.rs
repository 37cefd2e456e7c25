//! A leased handler that ended without an outcome, where an operator is to decide.

use axum::extract::Request;
use axum::response::IntoResponse;
use http::StatusCode;
use pgonce::OnLapse;
use pgonce::web::{Answer, OnceClaim};

use super::kit::{App, LEASE, Mode, handled};
use super::{post, send};
use crate::harness::TestDb;

/// Ends with this status, after the remote was asked or before.
fn ends(db: &TestDb, policy: OnLapse, asks: bool, status: StatusCode) -> App {
    let layer = Mode::Leased.layer(db).on_lapse(policy);
    handled(layer, move |_, request: Request| async move {
        if asks {
            let _key = OnceClaim::of(request.extensions()).unwrap().derived_key("charge");
        }
        status.into_response()
    })
}

// Trap 45. A 5xx or a time-out after the remote was asked does not say whether it has acted.
#[tokio::test]
async fn an_error_after_the_remote_was_asked_is_held() {
    for status in [StatusCode::INTERNAL_SERVER_ERROR, StatusCode::REQUEST_TIMEOUT] {
        let db = TestDb::new().await;
        db.stop_clock().await;
        let app = ends(&db, OnLapse::Hold, true, status);
        assert_eq!(send(&app.router, post("k", "")).await.answer, Some(Answer::Unknown));
        db.advance(LEASE).await;
        assert_eq!(send(&app.router, post("k", "")).await.answer, Some(Answer::Held));
        assert_eq!(app.calls(), 1);
    }
}

#[tokio::test]
async fn an_error_before_that_or_without_that_policy_frees_the_key() {
    let error = StatusCode::INTERNAL_SERVER_ERROR;
    for (policy, asks) in [(OnLapse::Hold, false), (OnLapse::Retry, true)] {
        let db = TestDb::new().await;
        let app = ends(&db, policy, asks, error);
        for call in 1..=2 {
            assert_eq!(send(&app.router, post("k", "")).await.answer, Some(Answer::Released));
            assert_eq!(app.calls(), call);
        }
    }
}
