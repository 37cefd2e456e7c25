//! Whose key it is, and what comes before the layer.

use axum::extract::MatchedPath;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::request::Parts;
use http::{Method, StatusCode};
use pgonce::Scope;
use pgonce::web::{Answer, IdempotencyLayer, OnceTx};

use super::kit::{MODES, app, keys, numbered};
use super::{post, send};
use crate::support::db::TestDb;

// Trap 9.
#[tokio::test]
async fn the_same_key_of_another_tenant_is_another_operation() {
    for mode in MODES {
        let db = TestDb::new().await;
        let app = app(&db, mode.layer(&db), numbered);
        for (tenant, call) in [("acme", 1), ("globex", 2)] {
            for replay in [false, true] {
                let mut request = post("k", "");
                request.headers_mut().insert("x-tenant", tenant.parse().unwrap());
                let got = send(&app.router, request).await;
                assert_eq!((got.is_replay(), got.body), (replay, format!("call {call}").into()));
            }
        }
    }
}

// Trap 9. An unknown caller is no tenant.
#[tokio::test]
async fn a_request_of_nobody_is_refused() {
    for mode in MODES {
        let db = TestDb::new().await;
        let app = app(&db, mode.layer(&db), numbered);
        for tenant in [None, Some("x".repeat(256))] {
            let mut request = post("k", "");
            request.headers_mut().remove("x-tenant");
            if let Some(too_long) = tenant {
                request.headers_mut().insert("x-tenant", too_long.parse().unwrap());
            }
            let got = send(&app.router, request).await;
            assert_eq!(got.status, StatusCode::INTERNAL_SERVER_ERROR);
            assert_eq!((got.answer, got.code()), (Some(Answer::NoScope), "no_scope".into()));
        }
        assert_eq!((app.calls(), keys(&db).await), (0, 0));
    }
}

// Trap 10. Authentication and rate limits are outside: their refusals take no key.
#[tokio::test]
async fn what_is_refused_outside_of_the_layer_leaves_the_key_free() {
    async fn gatekeeper(request: axum::extract::Request, next: Next) -> Response {
        match request.headers().get("x-refuse").map(|status| status.to_str().unwrap()) {
            Some(status) => status.parse::<StatusCode>().unwrap().into_response(),
            None => next.run(request).await,
        }
    }
    for mode in MODES {
        let db = TestDb::new().await;
        let inner = app(&db, mode.layer(&db), numbered);
        let outer = inner.router.clone().layer(from_fn(gatekeeper));
        for status in ["401", "429"] {
            let mut refused = post("k", "");
            refused.headers_mut().insert("x-refuse", status.parse().unwrap());
            assert_eq!(send(&outer, refused).await.status.as_str(), status);
        }
        assert_eq!(keys(&db).await, 0);
        assert_eq!(send(&outer, post("k", "")).await.answer, Some(Answer::Performed));
        // Nor do they return a stored response.
        let mut refused = post("k", "");
        refused.headers_mut().insert("x-refuse", "401".parse().unwrap());
        let refused = send(&outer, refused).await;
        assert_eq!((refused.status, refused.body), (StatusCode::UNAUTHORIZED, Bytes::new()));
    }
}

// Trap 9. Inside `nest`, axum shows the layer only the rest of the path. So the operation belongs in the scope: here,
// two routes look alike to the layer.
#[tokio::test]
async fn nested_routes_are_kept_apart_by_their_scopes() {
    let db = TestDb::new().await;
    let nested = |operation: &'static str| {
        let idempotency =
            IdempotencyLayer::new(db.once.clone(), db.pool.clone(), move |_: &Parts| {
                Scope::new(format!("acme/{operation}")).ok()
            });
        app(&db, idempotency, move |_| operation).router
    };
    let router = axum::Router::new()
        .nest("/payments", nested("payments"))
        .nest("/refunds", nested("refunds"));
    for operation in ["payments", "refunds"] {
        let mut request = post("k", "100");
        *request.uri_mut() = format!("/{operation}").parse().unwrap();
        assert_eq!(*request.method(), Method::POST);
        assert_eq!(send(&router, request).await.body, operation);
    }
}

#[tokio::test]
async fn no_path_of_a_client_is_an_error_or_an_operation_of_its_own() {
    let db = TestDb::new().await;
    let idempotency = IdempotencyLayer::new(db.once.clone(), db.pool.clone(), |request: &Parts| {
        let route = request.extensions.get::<MatchedPath>()?.as_str();
        Some(Scope::of(["acme", route]))
    });
    let handler = async |_: OnceTx| StatusCode::CREATED;
    let router = axum::Router::new()
        .route("/orders/{id}/pay", axum::routing::post(handler).layer(idempotency));
    let pay = async |id: &str, key: &str| {
        let mut request = post(key, "100");
        *request.uri_mut() = format!("/orders/{id}/pay").parse().unwrap();
        send(&router, request).await.answer.unwrap()
    };
    assert_eq!(pay(&"7".repeat(500), "long").await, Answer::Performed);
    assert_eq!(pay("a%20b", "k").await, Answer::Performed);
    assert_eq!(pay("%61%20b", "k").await, Answer::Mismatch);
    assert_eq!(keys(&db).await, 2);
}
