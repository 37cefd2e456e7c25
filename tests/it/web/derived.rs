//! Keys for remotes: on every path of a request, they depend only on scope and key.

use axum::extract::Request;
use axum::response::IntoResponse;
use bytes::Bytes;
use http::StatusCode;
use pgonce::web::{Answer, IdempotencyLayer, OnceClaim};
use pgonce::{Operation, Scope};

use super::kit::{App, MODES, Mode, closed_pool, handled};
use super::{layer, post, send};
use crate::support::db::TestDb;

/// Answers with the derived key. Asks for it twice, like a handler that repeats a call to a remote.
fn tells(idempotency: IdempotencyLayer) -> App {
    handled(idempotency, |_, request: Request| async move {
        let claim = OnceClaim::of(request.extensions()).unwrap();
        let key = claim.derived_key("charge");
        assert_eq!(claim.derived_key("charge"), key, "a handler's own retry");
        assert_ne!(claim.derived_key("refund"), key);
        (StatusCode::BAD_GATEWAY, key.as_str().to_owned()).into_response()
    })
}

fn expected() -> Bytes {
    let op = Operation::new("acme/test", "k").unwrap();
    op.derived_key("charge").as_str().to_owned().into()
}

#[tokio::test]
async fn an_observing_route_hands_out_the_same_key_for_each_retry() {
    for mode in MODES {
        let db = TestDb::new().await;
        // With stored responses, the retries would be replays, a mismatch, and too long.
        let app = tells(mode.layer(&db).observe().store_server_errors().request_bytes_max(9));
        for body in ["100", "100", "200", "0123456789"] {
            assert_eq!(
                send(&app.router, post("k", body)).await.body,
                expected(),
                "{mode:?} {body}"
            );
        }
    }
}

#[tokio::test]
async fn a_route_that_fails_open_hands_out_the_same_key_for_each_retry() {
    for mode in MODES {
        let db = TestDb::new().await;
        let scope = |_: &http::request::Parts| Scope::new("acme/test").ok();
        let down =
            IdempotencyLayer::new(db.once.clone(), closed_pool(&db).await, scope).fail_open();
        let app = tells(mode.of(down));
        for _ in 0..3 {
            let got = send(&app.router, post("k", "")).await;
            assert_eq!((got.answer, got.body), (Some(Answer::Unprotected), expected()), "{mode:?}");
        }
    }
}

#[tokio::test]
async fn a_route_that_ignores_keys_hands_out_the_same_key_for_each_retry() {
    for mode in MODES {
        let db = TestDb::new().await;
        let app = tells(mode.layer(&db).off());
        for _ in 0..2 {
            assert_eq!(send(&app.router, post("k", "")).await.body, expected(), "{mode:?}");
        }
        // Even a malformed key is not refused there.
        let got = send(&app.router, post("a,b", "")).await;
        assert_eq!(got.answer, Some(Answer::Unkeyed));
    }
}

#[tokio::test]
async fn a_request_without_a_key_gets_random_ones() {
    let db = TestDb::new().await;
    let app = tells(Mode::Leased.of(layer(&db)).optional());
    let unkeyed = async || {
        let mut request = post("k", "");
        request.headers_mut().remove("idempotency-key");
        send(&app.router, request).await.body
    };
    assert_ne!(unkeyed().await, unkeyed().await);
}
